//! What the tests of this crate share.

use crate::ns::Namespace;

/// Runs `test` in a network namespace of its own, where `lo` is down. Without the right to make one the test fails in
/// CI, and says so and passes elsewhere.
pub fn in_new_netns(test: impl FnOnce() + Send) {
    let namespace = match Namespace::new_net() {
        Ok(namespace) => namespace,
        Err(error) if std::env::var_os("CI").is_some() => panic!("this test needs a network namespace: {error}"),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let ran: crate::Result<()> = namespace.run(|| {
        test();
        Ok(())
    });
    ran.unwrap();
}
