use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use podwire_kernel::route::{LinkChange, Mac};
use serde::Deserialize;
use serde_json::Value;

use crate::{Call, Error, Result};

/// Where the reference plugin keeps how interfaces were before.
const FOLDER: &str = "/run/cni/tuning";
/// If it exists: which kernel parameters may be set.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

/// The checked configuration of one call.
#[derive(Debug)]
pub struct Config {
    pub folder: PathBuf,
    /// By path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub promiscuous: bool,
    pub all_multicast: Option<bool>,
    pub tx_queue_length: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    data_dir: Option<PathBuf>,
    #[serde(flatten)]
    settings: Settings,
    runtime_config: Option<RuntimeConfig>,
    args: Args,
}

/// What may be said in the configuration itself, and once more in `args.cni`, which goes before.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Settings {
    sysctl: Option<BTreeMap<String, Value>>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_length: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeConfig {
    mac: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: Settings,
}

impl Config {
    /// Reads and checks the configuration of `call`.
    pub fn of(call: &Call) -> Result<Self> {
        let Fields { data_dir, settings, runtime_config, args: Args { cni } } = call.config()?;
        let mut sysctls = BTreeMap::new();
        let given: BTreeMap<String, Value> = settings.sysctl.into_iter().chain(cni.sysctl).flatten().collect();
        // STATUS is asked for no interface in particular.
        let ifname = if call.ifname.is_empty() { "IFNAME" } else { &call.ifname };
        for (key, value) in &given {
            sysctls.insert(path_of(key, ifname)?, text_of(key, value)?);
        }
        allow(Path::new(ALLOWLIST), given.keys())?;
        let from_args = call.args.iter().find(|(key, _)| key.eq_ignore_ascii_case("mac")).map(|(_, mac)| mac.clone());
        let from_caller = runtime_config.and_then(|config| config.mac);
        let mac = [cni.mac, from_caller, from_args, settings.mac].into_iter().flatten().find(|mac| !mac.is_empty());
        let mac = mac.map(|mac| mac.parse::<Mac>().map_err(|error| Error::Config(format!("\"mac\": {error}"))));
        Ok(Self {
            folder: data_dir.unwrap_or_else(|| FOLDER.into()),
            sysctls,
            mac: mac.transpose()?,
            mtu: cni.mtu.or(settings.mtu).filter(|mtu| *mtu != 0),
            promiscuous: cni.promisc.or(settings.promisc).unwrap_or_default(),
            all_multicast: cni.allmulti.or(settings.allmulti),
            tx_queue_length: cni.tx_queue_length.or(settings.tx_queue_length),
        })
    }

    /// Only where earlier states are: what teardown needs, whatever has become of the rest.
    pub fn folder_of(call: &Call) -> PathBuf {
        let folder = call.config.get("dataDir").and_then(Value::as_str);
        folder.filter(|folder| !folder.is_empty()).unwrap_or(FOLDER).into()
    }

    pub fn is_empty(&self) -> bool {
        self.sysctls.is_empty() && self.changes().is_empty()
    }

    /// What is to be changed about the interface.
    pub fn changes(&self) -> Vec<LinkChange<'static>> {
        let mut changes = Vec::new();
        changes.extend(self.mac.map(LinkChange::Mac));
        changes.extend(self.promiscuous.then_some(LinkChange::Promiscuous(true)));
        changes.extend(self.mtu.map(LinkChange::Mtu));
        changes.extend(self.all_multicast.map(LinkChange::AllMulticast));
        changes.extend(self.tx_queue_length.map(LinkChange::TxQueueLength));
        changes
    }
}

/// `net.ipv4.conf.IFNAME.arp_filter` or `net/ipv4/conf/IFNAME/arp_filter` as a path, with the interface for `IFNAME`.
/// Only what a network namespace has of its own, or the host would be changed.
fn path_of(key: &str, ifname: &str) -> Result<String> {
    let separator = if key.contains('/') { '/' } else { '.' };
    let parts: Vec<&str> = key.split(separator).map(|part| if part == "IFNAME" { ifname } else { part }).collect();
    let odd = parts.len() < 2 || parts.iter().any(|part| part.is_empty() || matches!(*part, "." | ".."));
    if parts.first() != Some(&"net") || odd {
        return Err(Error::Config(format!("\"sysctl\": {key:?} is not below net: it would change the node itself")));
    }
    Ok(parts.join("/"))
}

fn text_of(key: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Error::Config(format!("\"sysctl\": the value of {key:?} is neither text nor number"))),
    }
}

/// The node's administrator may say which parameters containers get: a regular expression a line, of which one must match
/// the name as it was written. What such a line uses beyond `^`, `$`, `.`, `.*` and `\\.` is not known here.
fn allow<'a>(list: &Path, mut names: impl Iterator<Item = &'a String>) -> Result<()> {
    let text = match fs::read_to_string(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.map_err(|error| Error::io("read", list, error))?,
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let patterns: Vec<Pattern> = lines.map(|line| Pattern::parse(line, list)).collect::<Result<_>>()?;
    match names.find(|name| !patterns.iter().any(|pattern| pattern.matches(name))) {
        Some(name) => Err(Error::Config(format!("\"sysctl\": {name:?} is not allowed by {}", list.display()))),
        None => Ok(()),
    }
}

/// The little of regular expressions that such a list needs.
struct Pattern {
    parts: Vec<Part>,
    to_the_end: bool,
}

#[derive(PartialEq, Eq)]
enum Part {
    Just(char),
    Any,
    AnyNumber,
}

impl Pattern {
    fn parse(line: &str, list: &Path) -> Result<Self> {
        let from_the_start = line.starts_with('^');
        let to_the_end = line.ends_with('$');
        let inner = line.strip_prefix('^').unwrap_or(line);
        let inner = inner.strip_suffix('$').unwrap_or(inner);
        let mut parts = if from_the_start { Vec::new() } else { vec![Part::AnyNumber] };
        let mut rest = inner.chars().peekable();
        while let Some(c) = rest.next() {
            parts.push(match c {
                '.' if rest.next_if_eq(&'*').is_some() => Part::AnyNumber,
                '.' => Part::Any,
                '\\' if rest.peek().is_some_and(char::is_ascii_punctuation) => {
                    Part::Just(rest.next().unwrap_or_default())
                }
                c if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/') => Part::Just(c),
                _ => {
                    let list = list.display();
                    return Err(Error::Config(format!(
                        "{list}: {line:?} is more of a regular expression than is known"
                    )));
                }
            });
        }
        Ok(Self { parts, to_the_end })
    }

    fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        // Which parts may come next, after each character.
        let mut reached = vec![false; self.parts.len() + 1];
        reached[0] = true;
        let skip = |reached: &mut Vec<bool>| {
            for (at, part) in self.parts.iter().enumerate() {
                reached[at + 1] |= reached[at] && *part == Part::AnyNumber;
            }
        };
        skip(&mut reached);
        for c in name {
            if !self.to_the_end && reached[self.parts.len()] {
                return true;
            }
            let mut next = vec![false; reached.len()];
            for (at, part) in self.parts.iter().enumerate().filter(|(at, _)| reached[*at]) {
                match part {
                    Part::Just(wanted) if *wanted != c => {}
                    Part::Just(_) | Part::Any => next[at + 1] = true,
                    Part::AnyNumber => next[at] = true,
                }
            }
            skip(&mut next);
            reached = next;
        }
        reached[self.parts.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Folder;

    #[test]
    fn a_list_says_which_parameters_are_allowed() {
        let folder = Folder::new();
        let list = folder.path().join("allowlist.conf");
        let allowed = |lines: &str, name: &str| {
            fs::write(&list, lines).unwrap();
            allow(&list, [name.to_owned()].iter())
        };
        allow(&folder.path().join("none"), ["net.core.x".to_owned()].iter()).unwrap();
        for (lines, name, expected) in [
            ("^net.core.somaxconn$", "net.core.somaxconn", true),
            ("^net.core.somaxconn$", "net.core.somaxconn2", false),
            ("^net.core.somaxconn$", "xnet.core.somaxconn", false),
            ("somax", "net.core.somaxconn", true),
            ("^net\\.ipv4\\.conf\\.IFNAME\\..*\n\n^net.ipv6", "net.ipv4.conf.IFNAME.arp_filter", true),
            ("^net\\.ipv4", "netxipv4", false),
            ("^net.*filter$", "net.ipv4.conf.IFNAME.arp_filter", true),
            ("^net.*filter$", "net.ipv4.conf.IFNAME.arp_filters", false),
            ("", "net.core.somaxconn", false),
        ] {
            assert_eq!(allowed(lines, name).is_ok(), expected, "{lines} {name}");
        }
        let error = allowed("^net\\.(core|ipv4)$", "net.core").unwrap_err();
        assert!(error.to_string().contains("is more of a regular expression than is known"), "{error}");
    }

    #[test]
    fn a_parameter_is_named_with_dots_or_slashes_and_is_the_containers() {
        assert_eq!(path_of("net.ipv4.conf.IFNAME.arp_filter", "eth0").unwrap(), "net/ipv4/conf/eth0/arp_filter");
        assert_eq!(path_of("net/ipv4/conf/eth0.5/arp_filter", "eth0").unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        for key in ["kernel.shmmax", "net", "net..ipv4", "net/../kernel/shmmax", "", "network.x"] {
            assert_eq!(path_of(key, "eth0").unwrap_err().code(), 7, "{key}");
        }
    }
}
