//! Kernel parameters under `/proc/sys`.
//!
//! Keys are paths below `/proc/sys`, such as `net/ipv4/ip_forward`: interface names may hold dots, so the dotted form
//! is not offered. Those under `net/` belong to the network namespace of the calling thread.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{Error, Result};

/// Reads and writes kernel parameters.
pub trait Sysctl: Send {
    /// The value of `key`, without the newline at its end.
    ///
    /// # Errors
    /// ENOENT when the kernel (or the namespace) does not have it.
    fn read(&self, key: &str) -> Result<String>;

    /// Sets `key`.
    ///
    /// # Errors
    /// ENOENT when the kernel does not have it; EACCES or EROFS when it may not be set, for example
    /// `net/netfilter/nf_conntrack_max` outside the first network namespace; EINVAL for a value out of range.
    fn write(&mut self, key: &str, value: &str) -> Result<()>;

    /// Sets `key` unless it has that value already: what a container with a read-only `/proc/sys` needs.
    ///
    /// # Errors
    /// As [`Sysctl::write`].
    fn ensure(&mut self, key: &str, value: &str) -> Result<()> {
        if self.read(key)? == value { Ok(()) } else { self.write(key, value) }
    }
}

/// [`Sysctl`] of the running kernel, as seen in the calling thread's namespaces.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcSys;

impl Sysctl for ProcSys {
    fn read(&self, key: &str) -> Result<String> {
        check(key)?;
        let mut value = fs::read_to_string(Path::new("/proc/sys").join(key))
            .map_err(|error| Error::io(format_args!("read sysctl {key}"), error))?;
        value.truncate(value.trim_end().len());
        Ok(value)
    }

    fn write(&mut self, key: &str, value: &str) -> Result<()> {
        check(key)?;
        // Not `fs::write`: there is nothing to create or truncate under /proc/sys.
        let file = fs::OpenOptions::new().write(true).open(Path::new("/proc/sys").join(key));
        file.and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|error| Error::io(format_args!("set sysctl {key} to {value:?}"), error))
    }
}

/// Kernel parameters in memory: only the given ones exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeSysctl(BTreeMap<String, String>);

impl FakeSysctl {
    /// A kernel that has just these parameters.
    pub fn new<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(values.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }
}

impl Sysctl for FakeSysctl {
    fn read(&self, key: &str) -> Result<String> {
        check(key)?;
        self.0.get(key).cloned().ok_or_else(|| Error::refused(format_args!("read sysctl {key}"), libc::ENOENT))
    }

    fn write(&mut self, key: &str, value: &str) -> Result<()> {
        check(key)?;
        let slot = self.0.get_mut(key);
        let slot = slot.ok_or_else(|| Error::refused(format_args!("set sysctl {key} to {value:?}"), libc::ENOENT))?;
        value.clone_into(slot);
        Ok(())
    }
}

fn check(key: &str) -> Result<()> {
    if key.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    Err(Error::invalid(
        format_args!("use sysctl {key:?}"),
        "expected a path below /proc/sys, such as net/ipv4/ip_forward",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::in_new_netns;

    const FORWARD: &str = "net/ipv4/ip_forward";

    fn suite(sysctl: &mut dyn Sysctl) {
        let before = sysctl.read(FORWARD).unwrap();
        let other = if before == "0" { "1" } else { "0" };
        sysctl.write(FORWARD, other).unwrap();
        assert_eq!(sysctl.read(FORWARD).unwrap(), other);
        sysctl.ensure(FORWARD, &before).unwrap();
        assert_eq!(sysctl.read(FORWARD).unwrap(), before);
        assert!(sysctl.read("net/ipv4/no_such_thing").unwrap_err().is_not_found());
        assert!(sysctl.write("net/ipv4/no_such_thing", "1").unwrap_err().is_not_found());
        for key in ["../etc/passwd", "/etc/passwd", "", "net//ipv4"] {
            assert!(matches!(sysctl.read(key), Err(Error::Invalid { .. })), "{key:?}");
        }
    }

    #[test]
    fn parameters_are_read_and_set() {
        suite(&mut FakeSysctl::new([(FORWARD, "0")]));
        in_new_netns(|| suite(&mut ProcSys));
    }

    #[test]
    fn a_refusal_names_the_parameter_and_the_value() {
        in_new_netns(|| {
            let error = ProcSys.write(FORWARD, "banana").unwrap_err();
            assert_eq!(
                error.to_string(),
                r#"cannot set sysctl net/ipv4/ip_forward to "banana": Invalid argument (os error 22)"#
            );
        });
    }
}
