//! Tells what changes in the kernel: someone may delete or change by hand what the overlay needs, and the uplink's address
//! or MTU may change.

use podwire_kernel::route::{Change, ChangeWatch};
use tokio::sync::mpsc;
use tracing::warn;

/// What changed, whoever did it; this process's own doing is among it.
pub(super) type Changes = mpsc::UnboundedReceiver<Change>;

/// Watches the calling thread's network namespace, on a thread of its own that ends with the process.
pub(super) fn changes() -> anyhow::Result<Changes> {
    let mut watch = ChangeWatch::open()?;
    let (tell, changes) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("links".to_owned()).spawn(move || {
        while !tell.is_closed() {
            match watch.next(None) {
                Ok(changed) => changed.into_iter().for_each(|change| {
                    let _ = tell.send(change);
                }),
                Err(error) => {
                    warn!(%error, "what others change is no longer noticed");
                    return;
                }
            }
        }
    })?;
    Ok(changes)
}
