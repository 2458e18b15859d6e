//! Tells when something goes away in the kernel: someone may delete the overlay's device, or an entry of it, by hand.

use podwire_kernel::route::{RemovalWatch, Removed};
use tokio::sync::mpsc;
use tracing::warn;

/// What went away, whoever removed it.
pub(super) type Removals = mpsc::UnboundedReceiver<Removed>;

/// Watches the calling thread's network namespace, on a thread of its own that ends with the process.
pub(super) fn removals() -> anyhow::Result<Removals> {
    let mut watch = RemovalWatch::open()?;
    let (tell, removals) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("links".to_owned()).spawn(move || {
        while !tell.is_closed() {
            match watch.next(None) {
                Ok(removed) => removed.into_iter().for_each(|removed| {
                    let _ = tell.send(removed);
                }),
                Err(error) => {
                    warn!(%error, "what others delete is no longer noticed");
                    return;
                }
            }
        }
    })?;
    Ok(removals)
}
