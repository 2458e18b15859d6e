//! The machine's own `iptables-restore` and `iptables-save`.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use podwire_model::Family;

use super::{
    Digest, Edit, Iptables, Listing, Table, TableState, edit,
    native::{self, Native},
    prefix,
    saved::text_digest,
    watch::{LegacyWatch, NftWatch},
};
use crate::{
    Error, Result,
    ns::{self, Namespace},
};

/// The environment variable that decides which kind of iptables is used: `legacy` or `nft`.
pub const BACKEND_VARIABLE: &str = "PODWIRE_IPTABLES";

/// Seconds to wait for other users of legacy iptables.
const WAIT: &str = "10";

/// The two kinds of iptables. A packet passes the rules of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's ip_tables.
    Legacy,
    /// The same rules in nf_tables.
    Nft,
}

impl Backend {
    /// As in the names of programs: `iptables-nft-restore`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }

    /// Whether its programs are there.
    pub fn is_installed(self) -> bool {
        program(self, Family::V4, "restore").is_some() && program(self, Family::V4, "save").is_some()
    }

    /// The one that [`BACKEND_VARIABLE`] asks for, if it does.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another value.
    pub fn from_environment() -> Result<Option<Self>> {
        match std::env::var(BACKEND_VARIABLE) {
            Err(_) => Ok(None),
            Ok(text) => match [Self::Legacy, Self::Nft].into_iter().find(|backend| backend.name() == text) {
                Some(backend) => Ok(Some(backend)),
                None => Err(Error::invalid(format_args!("use {BACKEND_VARIABLE}={text}"), "expected legacy or nft")),
            },
        }
    }

    /// The one that this machine uses, judged as kubernetes' iptables-wrappers do: where kubelet made its chains, or
    /// else where there are more rules; nft if that does not tell. Only what is installed counts.
    pub fn detect() -> Self {
        if !Self::Legacy.is_installed() {
            return Self::Nft;
        }
        if !Self::Nft.is_installed() {
            return Self::Legacy;
        }
        let saved = |backend| {
            [Family::V4, Family::V6].map(|family| {
                // Naming no table does not make tables that are not there.
                let output = program(backend, family, "save").and_then(|path| Command::new(path).output().ok());
                output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).into_owned())
            })
        };
        let [nft, legacy] = [saved(Self::Nft), saved(Self::Legacy)];
        if has_hint(&nft) {
            Self::Nft
        } else if has_hint(&legacy) || rules(&legacy) > rules(&nft) {
            Self::Legacy
        } else {
            Self::Nft
        }
    }
}

/// Whether kubelet left its chains there.
fn has_hint(saved: &[String]) -> bool {
    let hints = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];
    saved.iter().flat_map(|text| text.lines()).any(|line| hints.iter().any(|hint| line.starts_with(hint)))
}

fn rules(saved: &[String]) -> usize {
    saved.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with('-')).count()
}

/// [`Iptables`] of the network namespace in which it was opened.
///
/// With the nft kind, [`Iptables::edit`] writes to nf_tables itself what the program would write: see
/// [`native`](super::native).
#[derive(Debug)]
pub struct Real {
    programs: Programs,
    kind: Kind,
    /// What others had done before something of ours was written, and nobody has asked about since.
    missed: bool,
}

#[derive(Debug)]
enum Kind {
    Legacy(LegacyWatch),
    Nft {
        native: Native,
        /// Not open while something of ours is written.
        watch: Option<NftWatch>,
    },
}

/// The programs of one kind, run in one network namespace.
#[derive(Debug)]
struct Programs {
    backend: Backend,
    namespace: Namespace,
}

impl Real {
    /// For the network namespace that the calling thread is in. Without `backend`, the environment decides
    /// ([`BACKEND_VARIABLE`]), or else what the machine uses ([`Backend::detect`]).
    ///
    /// # Errors
    /// The programs are not installed, or [`BACKEND_VARIABLE`] makes no sense.
    pub fn open(backend: Option<Backend>) -> Result<Self> {
        let backend = match backend {
            Some(backend) => backend,
            None => Backend::from_environment()?.unwrap_or_else(Backend::detect),
        };
        for verb in ["restore", "save"] {
            find(backend, Family::V4, verb)?;
        }
        let kind = match backend {
            Backend::Legacy => Kind::Legacy(LegacyWatch::open()?),
            Backend::Nft => Kind::Nft { native: Native::open()?, watch: Some(NftWatch::open()?) },
        };
        Ok(Self { programs: Programs { backend, namespace: Namespace::current(ns::Kind::Net)? }, kind, missed: false })
    }

    /// Which kind it is.
    pub fn backend(&self) -> Backend {
        self.programs.backend
    }

    /// Whether [`Iptables::restore`] would understand `text`: nothing is changed.
    ///
    /// # Errors
    /// As [`Iptables::restore`].
    pub fn test(&mut self, family: Family, text: &str) -> Result<()> {
        self.programs.run(family, "restore", &["--noflush", "--wait", WAIT, "--test"], text).map(drop)
    }

    /// Begins to watch again, now that nothing of ours is written. For the legacy kind, what these tables are now is right.
    fn look(&mut self, family: Family, tables: impl Iterator<Item = Table>) -> Result<()> {
        match &mut self.kind {
            Kind::Nft { watch: Some(_), .. } => Ok(()),
            Kind::Nft { watch, .. } => {
                *watch = Some(self.programs.namespace.run(NftWatch::open)?);
                Ok(())
            }
            Kind::Legacy(watch) => tables.into_iter().try_for_each(|table| watch.look(family, table)),
        }
    }

    /// Stops watching while something of ours is written; what others did before is not forgotten.
    fn look_away(&mut self) -> Result<()> {
        self.missed |= match &mut self.kind {
            Kind::Legacy(watch) => watch.disturbed()?,
            Kind::Nft { watch, .. } => match watch.take() {
                Some(mut watch) => watch.disturbed()?,
                None => false,
            },
        };
        Ok(())
    }
}

impl Programs {
    fn restore(&self, family: Family, text: &str) -> Result<()> {
        self.run(family, "restore", &["--noflush", "--wait", WAIT, "--counters"], text).map(drop)
    }

    /// Runs a program in the namespace.
    fn run(&self, family: Family, verb: &str, arguments: &[&str], input: &str) -> Result<String> {
        let path = find(self.backend, family, verb)?;
        let what = || format!("run {} {}", path.display(), arguments.join(" "));
        let output = self
            .namespace
            .run(|| feed(Command::new(&path).args(arguments), input).map_err(|error| Error::io(what(), error)))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = explain(&String::from_utf8_lossy(&output.stderr), input);
        Err(Error::Program { what: what(), message: format!("{message} ({})", output.status) })
    }

    /// Whether the kernel has that legacy table in the namespace: merely asking for it would make it.
    fn has_legacy_table(&self, family: Family, table: Table) -> Result<bool> {
        let file = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        self.namespace.run(|| match fs::read_to_string(file) {
            Ok(names) => Ok(names.lines().any(|name| name == table.name())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format_args!("read {file}"), error)),
        })
    }
}

impl Iptables for Real {
    fn restore(&mut self, family: Family, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.look_away()?;
        let done = self.programs.restore(family, text);
        let named = |table: &Table| text.lines().any(|line| line.strip_prefix('*') == Some(table.name()));
        self.look(family, Table::ALL.into_iter().filter(named))?;
        done
    }

    fn edit(&mut self, family: Family, table: Table, edits: &mut dyn Iterator<Item = Edit>) -> Result<()> {
        let mut edits = edits.peekable();
        if edits.peek().is_none() {
            return Ok(());
        }
        self.look_away()?;
        let programs = &self.programs;
        let done = match &mut self.kind {
            Kind::Legacy(_) => programs.restore(family, &edit::text(family, table, &mut edits)),
            Kind::Nft { native, .. } => native.edit((family, table), &mut edits, |edit| {
                programs.restore(family, &edit::text(family, table, &mut std::iter::once(edit)))
            }),
        };
        self.look(family, std::iter::once(table))?;
        done
    }

    fn save(&mut self, family: Family, table: Table) -> Result<TableState> {
        // The programs do not say so when the kernel was told to do without IPv6.
        let absent = family == Family::V6 && !Path::new("/proc/sys/net/ipv6").exists();
        if absent || self.backend() == Backend::Legacy && !self.programs.has_legacy_table(family, table)? {
            return Ok(TableState::default());
        }
        // From before the table is read, so that nothing is missed.
        self.look(family, std::iter::once(table))?;
        let text = self.programs.run(family, "save", &["-t", table.name()], "")?;
        let what = || format!("read table {table} of {}", prefix(family));
        TableState::parse(&text).map_err(|detail| Error::Malformed { what: what(), detail })
    }

    fn list(&mut self, family: Family, table: Table) -> Result<Listing> {
        if let Kind::Nft { watch: None, .. } = &self.kind {
            self.look(family, std::iter::once(table))?;
        }
        match &mut self.kind {
            Kind::Legacy(_) => self.save(family, table).map(|state| state.listing()),
            Kind::Nft { native, .. } => native.listing(family, table),
        }
    }

    fn digest(&self) -> Digest {
        match &self.kind {
            Kind::Legacy(_) => text_digest,
            Kind::Nft { .. } => native::digest,
        }
    }

    fn disturbed(&mut self) -> Result<bool> {
        let now = match &mut self.kind {
            Kind::Legacy(watch) => watch.disturbed()?,
            Kind::Nft { watch: Some(watch), .. } => watch.disturbed()?,
            Kind::Nft { watch: None, .. } => true,
        };
        Ok(std::mem::take(&mut self.missed) || now)
    }
}

/// Starts a program, gives it its input and takes everything that it prints.
fn feed(command: &mut Command, input: &str) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // From a thread of its own, so that neither waits for the other with a full pipe. A program that ends early
        // says why itself.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    })
}

/// The program's own words, and the line of the input that it names.
fn explain(stderr: &str, input: &str) -> String {
    let said: Vec<_> = stderr.lines().filter(|line| !line.is_empty() && !line.starts_with("Try `")).collect();
    let said = said.join("; ");
    let number = said.split("line").skip(1).find_map(|rest| {
        let digits: String = rest.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok()
    });
    match number.and_then(|number| input.lines().nth(number.checked_sub(1)?)) {
        Some(line) => format!("{said}: {line}"),
        None => said,
    }
}

/// The program, or an error that says what to install.
fn find(backend: Backend, family: Family, verb: &str) -> Result<PathBuf> {
    program(backend, family, verb).ok_or_else(|| {
        Error::invalid(
            format_args!("run {}-{}-{verb}", prefix(family), backend.name()),
            "it is not installed; Debian has it in the package iptables",
        )
    })
}

fn program(backend: Backend, family: Family, verb: &str) -> Option<PathBuf> {
    let name = format!("{}-{}-{verb}", prefix(family), backend.name());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(OsStr::new(&name))).find(|path| is_file(path))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_holds_the_line_that_the_program_names() {
        let input = "*nat\n:A - [0:0]\n-A A -j NOPE\nCOMMIT\n";
        let legacy =
            "iptables-restore v1.8.9 (legacy): Couldn't load target `NOPE'\n\nError occurred at line: 3\nTry `x'\n";
        let explained =
            "iptables-restore v1.8.9 (legacy): Couldn't load target `NOPE'; Error occurred at line: 3: -A A -j NOPE";
        assert_eq!(explain(legacy, input), explained);
        assert_eq!(explain("iptables-restore: line 2 failed\n", input), "iptables-restore: line 2 failed: :A - [0:0]");
        assert_eq!(explain("no memory", input), "no memory");
    }

    #[test]
    fn kubelets_chains_and_rules_are_counted() {
        let saved = |text: &str| [text.to_owned(), String::new()];
        assert!(has_hint(&saved("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n")));
        assert!(!has_hint(&saved("-A X -m comment --comment \":KUBE-IPTABLES-HINT \" -j Y\n")));
        assert_eq!(rules(&saved("*nat\n:A - [0:0]\n-A A -j B\n-A A -j C\nCOMMIT\n")), 2);
    }
}
