//! Where files that a Corefile imports, and the values of its variables, come from.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// Gives a Corefile what its text alone does not hold.
pub trait Loader: Send + Sync {
    /// The value of `{$NAME}` or `{%NAME%}`; what is not set is empty, as in CoreDNS.
    fn variable(&self, name: &str) -> Option<String>;

    /// Path and text of the files that `import PATTERN` names, in the order of their paths.
    ///
    /// # Errors
    /// A file cannot be read. A pattern with `*` that fits no file is none.
    fn files(&self, pattern: &str) -> io::Result<Vec<(String, String)>>;
}

/// No files and no variables.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Loader for Nothing {
    fn variable(&self, _name: &str) -> Option<String> {
        None
    }

    fn files(&self, _pattern: &str) -> io::Result<Vec<(String, String)>> {
        Err(io::Error::new(io::ErrorKind::NotFound, "no such snippet, and files cannot be imported here"))
    }
}

/// The files of this machine and the variables of this process.
#[derive(Debug, Clone, Default)]
pub struct System {
    folder: PathBuf,
}

impl System {
    /// A loader for the Corefile at `path`: relative patterns start in its folder (CoreDNS).
    pub fn beside(path: &Path) -> Self {
        Self { folder: path.parent().unwrap_or(Path::new("")).to_owned() }
    }
}

impl Loader for System {
    fn variable(&self, name: &str) -> Option<String> {
        env::var(name).ok()
    }

    fn files(&self, pattern: &str) -> io::Result<Vec<(String, String)>> {
        let read = |path: PathBuf| Ok((path.display().to_string(), fs::read_to_string(&path)?));
        let path = self.folder.join(pattern);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this names no file"));
        };
        if !name.contains('*') {
            return Ok(vec![read(path)?]);
        }
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(|file| fits(file, name)) && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        paths.into_iter().map(read).collect()
    }
}

/// Whether a file's name fits a pattern in which each `*` stands for any text. As in a shell, a name that begins with a
/// dot fits only a pattern that does: a ConfigMap's folder has `..data` in it.
fn fits(name: &str, pattern: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (name, pattern, wanted) in [
            ("a.conf", "*.conf", true),
            ("a.conf", "*", true),
            ("a.conf", "a*f", true),
            ("a.conf", "*o*f", true),
            ("a.conf", "*.c*nf*", true),
            ("a.conf", "a.conf", true),
            ("a.conf", "a.con", false),
            ("a.conf", "*.cfg", false),
            ("ab", "ab*b", false),
            (".hidden", "*", false),
            (".hidden", ".*", true),
        ] {
            assert_eq!(fits(name, pattern), wanted, "{name} {pattern}");
        }
    }
}
