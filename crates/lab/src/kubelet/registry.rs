//! Which containers run on the node, and where their logs are: for `logs` and `exec`.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use podwire_apiserver::remote::{LogRequest, RemoteError};

use super::logs::Log;
use crate::container::Identity;

/// A running container, as seen by a command that wants to join it.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its first process.
    pub pid: u32,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Whom it runs as.
    pub identity: Identity,
}

#[derive(Debug, Default)]
struct Entry {
    /// Of the pod: another one of the same name may follow before the first is quite gone.
    uid: String,
    run: Option<Run>,
    logs: Vec<Log>,
    /// The latest run has ended and the next is waited for: the latest is the previous one by now.
    awaits_next: bool,
}

/// One container of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// Name of the container.
    pub container: String,
}

impl Key {
    fn names(&self) -> Names {
        (self.namespace.clone(), self.pod.clone(), self.container.clone())
    }
}

/// Namespace and name of a pod, name of a container.
type Names = (String, String, String);

/// The containers of a node.
#[derive(Debug, Default)]
pub struct Registry(Mutex<HashMap<Names, Entry>>);

impl Registry {
    /// A run of the container began. Logs of the two latest runs are kept.
    pub fn began(&self, key: &Key, log: Log, run: Option<Run>) {
        let mut entries = self.entries();
        let entry = entries.entry(key.names()).or_default();
        if entry.uid != key.uid {
            *entry = Entry { uid: key.uid.clone(), ..Entry::default() };
        }
        entry.run = run;
        entry.awaits_next = false;
        entry.logs.push(log);
        if entry.logs.len() > 2 {
            entry.logs.remove(0).delete();
        }
    }

    /// The run ended.
    pub fn ended(&self, key: &Key) {
        if let Some(entry) = self.entries().get_mut(&key.names()).filter(|entry| entry.uid == key.uid) {
            entry.run = None;
        }
    }

    /// The container, whose last run ended, waits to be started again.
    pub fn awaits_next(&self, key: &Key) {
        if let Some(entry) = self.entries().get_mut(&key.names()).filter(|entry| entry.uid == key.uid) {
            entry.awaits_next = true;
        }
    }

    /// The pod is gone, logs and all.
    pub fn forget(&self, uid: &str) {
        self.entries().retain(|_, entry| entry.uid != uid);
    }

    /// The log that `request` is about. The previous run of a container that runs is the one before; of one that waits
    /// to be started again it is the latest, as `lastState` says.
    ///
    /// # Errors
    /// [`RemoteError::NotFound`] before the container's first run; [`RemoteError::BadRequest`] for the previous run of
    /// a container that was not started again.
    pub fn log(&self, request: &LogRequest) -> Result<Log, RemoteError> {
        let LogRequest { namespace, pod, container, previous, .. } = request;
        let entries = self.entries();
        let entry = entries.get(&(namespace.clone(), pod.clone(), container.clone()));
        let previous = *previous && !entry.is_some_and(|e| e.awaits_next);
        match (entry.map(|e| e.logs.as_slice()), previous) {
            (Some([.., last]), false) => Ok(last.clone()),
            (Some([.., before, _]), true) => Ok(before.clone()),
            (Some([_]), true) => Err(RemoteError::BadRequest(format!(
                "previous terminated container {container:?} in pod {pod:?} not found"
            ))),
            _ => Err(RemoteError::NotFound(format!("container {container:?} in pod {pod:?} has not been started"))),
        }
    }

    /// The run to join.
    ///
    /// # Errors
    /// [`RemoteError::NotFound`] when the container does not run.
    pub fn running(&self, namespace: &str, pod: &str, container: &str) -> Result<Run, RemoteError> {
        let key = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        let run = self.entries().get(&key).and_then(|e| e.run.clone());
        run.ok_or_else(|| RemoteError::NotFound(format!("container {container:?} in pod {pod:?} is not running")))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Names, Entry>> {
        // A panic elsewhere cannot leave the map half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
