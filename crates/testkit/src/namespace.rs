//! Network namespaces for tests.

use podwire_kernel::ns::{Kind, unshare};

/// Runs `test` in a thread with a network namespace of its own, which ends with it. Without the capability it fails in
/// CI (environment variable `CI`), and elsewhere prints why nothing was tested.
///
/// # Panics
/// When the test does.
pub fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| match unshare(&[Kind::Net]) {
            Ok(()) => test(),
            Err(error) if std::env::var_os("CI").is_some() => panic!("no network namespace: {error}"),
            Err(error) => eprintln!("not tested: {error}"),
        });
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
