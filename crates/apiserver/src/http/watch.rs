//! watch: the changes of a collection, as they happen.
//!
//! A watcher keeps only the revision it has told so far and reads on in the store's history when the store wakes it.
//! A client that reads too slowly to keep up with that history is told so (410) and lists again.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::Response;
use serde_json::json;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};

use super::{
    Context,
    body::{Body, streamed},
    path::Target,
    read::Selection,
    shape::{self, Include, Shape},
    stopped,
};
use crate::{
    kinds::Kind,
    registry::Api,
    status::Status,
    store::{Change, Event, Object},
};

/// How often a watcher that asked for bookmarks gets one.
const BOOKMARK: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client does not say.
const LIFETIME: Duration = Duration::from_secs(45 * 60);

struct Watcher {
    api: Arc<Api>,
    kind: &'static Kind,
    selection: Selection,
    form: (Shape, Include),
    /// Everything up to here has been told.
    told: u64,
    /// Tell the present state first.
    initial: bool,
    /// And then tell that it is complete.
    initial_end: bool,
    bookmarks: bool,
    changed: Receiver<u64>,
    stopping: Receiver<bool>,
    next_bookmark: Instant,
    end: Instant,
    ended: bool,
}

/// GET with `watch`.
pub(super) fn watch(context: Context, target: &Target) -> Result<Response<Body>, Status> {
    let query = &context.query;
    let from: u64 = query.number("resourceVersion")?.unwrap_or(0);
    let lifetime = query.number("timeoutSeconds")?.map_or(LIFETIME, Duration::from_secs);
    let streaming_list = query.flag("sendInitialEvents");
    let now = Instant::now();
    let watcher = Watcher {
        kind: target.kind,
        selection: Selection::of(target, query)?,
        form: (context.shape, shape::include(query.text("includeObject"))),
        told: from,
        initial: from == 0 || streaming_list,
        initial_end: streaming_list,
        bookmarks: query.flag("allowWatchBookmarks"),
        changed: context.api.store.subscribe(target.kind.collection),
        stopping: context.stopping,
        next_bookmark: now + BOOKMARK,
        end: now + lifetime,
        ended: false,
        api: context.api,
    };
    let chunks = stream::unfold(watcher, |mut watcher| async move {
        let chunk = watcher.next().await?;
        Some((Ok(chunk), watcher))
    });
    Ok(streamed("application/json", chunks))
}

impl Watcher {
    /// The next lines to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if self.initial {
            self.initial = false;
            let lines = self.present_state();
            if !lines.is_empty() {
                return Some(lines);
            }
        }
        loop {
            // Seen before the history is read, so that no change falls between.
            self.changed.mark_unchanged();
            let lines = self.catch_up();
            if !lines.is_empty() {
                return Some(lines);
            }
            let bookmark = tokio::select! {
                changed = self.changed.changed() => {
                    // The store is gone only with the server.
                    changed.ok()?;
                    false
                }
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK;
                    true
                }
                () = sleep_until(self.end) => {
                    self.ended = true;
                    true
                }
                () = stopped(&mut self.stopping) => return None,
            };
            if bookmark && self.bookmarks {
                return Some(self.bookmark(false));
            }
            if self.ended {
                return None;
            }
        }
    }

    fn present_state(&mut self) -> Bytes {
        let listing = self.api.store.list(self.kind.collection, self.selection.namespace.as_deref());
        self.told = listing.revision;
        let mut lines = BytesMut::new();
        for object in listing.items.iter().filter(|o| self.selection.takes(o)) {
            self.line(&mut lines, "ADDED", object);
        }
        if self.initial_end {
            lines.put(self.bookmark(true));
        }
        lines.freeze()
    }

    /// What happened since the last call, in lines.
    fn catch_up(&mut self) -> Bytes {
        let mut lines = BytesMut::new();
        match self.api.store.history(self.kind.collection, self.told) {
            Ok(history) => {
                for event in &history.events {
                    self.tell(&mut lines, event);
                }
                self.told = history.revision;
            }
            Err(gone) => {
                self.ended = true;
                let status = Status::expired(self.told, gone.oldest).to_value();
                lines.put_slice(json!({"type": "ERROR", "object": status}).to_string().as_bytes());
                lines.put_u8(b'\n');
            }
        }
        lines.freeze()
    }

    /// Tells what a change means to this watcher: an object that begins or ceases to be selected comes or goes. One
    /// that goes is told as it last was selected, under the revision of the change.
    fn tell(&self, lines: &mut BytesMut, event: &Event) {
        let before = event.previous.as_ref().filter(|o| self.selection.takes(o));
        let after = event.change != Change::Deleted && self.selection.takes(&event.object);
        match (before, after) {
            (None, false) => {}
            (None, true) => self.line(lines, "ADDED", &event.object),
            (Some(_), true) => self.line(lines, "MODIFIED", &event.object),
            (Some(_), false) if event.change == Change::Deleted => self.line(lines, "DELETED", &event.object),
            (Some(last), false) => self.line(lines, "DELETED", &Object::new(last.value().clone(), event.revision)),
        }
    }

    fn line(&self, lines: &mut BytesMut, kind: &str, object: &Object) {
        let (shape, include) = self.form;
        lines.put_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        lines.put(shape::one(self.kind, object, shape, include));
        lines.put_slice(b"}\n");
    }

    fn bookmark(&self, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.told.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form.0 {
            Shape::Plain => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []})
            }
        };
        format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
    }
}
