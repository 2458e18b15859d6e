use std::{
    collections::BTreeMap,
    env,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use podwire_kernel::{ns::Namespace, route::RouteSocket};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    CniResult, Error, Result, Version, plugin,
    runtime::{Environment, execute},
};

/// What a plugin is asked to do (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Check that it is attached as ADD left it (0.4.0).
    Check,
    /// Release what belongs to no valid attachment (1.1.0).
    Gc,
    /// Say whether ADD can be served (1.1.0).
    Status,
    /// Say which versions are served.
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// As it is written in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Reads `CNI_COMMAND`.
    pub(crate) fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let text = required(variable, "CNI_COMMAND")?;
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or_else(|| Error::Environment {
            variable: "CNI_COMMAND",
            detail: format!("{text:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"),
        })
    }

    /// The first version that has it.
    const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }
}

/// One call of a plugin: its environment and standard input, checked.
#[derive(Debug, Clone)]
pub struct Call {
    /// What to do.
    pub verb: Verb,
    /// The container; empty for GC and STATUS.
    pub container_id: String,
    /// Path of the container's network namespace; absent when it is gone.
    pub netns: Option<PathBuf>,
    /// The interface in the container; empty for GC and STATUS.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
    /// `CNI_PATH`: where other plugins are.
    pub bin_dirs: Vec<PathBuf>,
    /// In which version to answer.
    pub version: Version,
    /// Name of the network.
    pub network: String,
    /// The whole configuration.
    pub config: Map<String, Value>,
    /// The result of the plugin before this one (ADD), or of the last one (CHECK, DEL).
    pub previous: Option<CniResult>,
    /// How many plugins called each other to get here.
    depth: u8,
}

/// More plugins than this do not call each other in earnest: flannel, bridge, host-local are three.
const DEEPEST: u8 = 4;

/// What every configuration has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Common {
    cni_version: Option<String>,
    #[serde(default)]
    name: String,
    prev_result: Option<Value>,
}

impl Call {
    /// Checks a call. `variable` looks up the environment.
    ///
    /// # Errors
    /// The specification's codes: 1 for the version, 4 for the environment, 6 and 7 for the configuration.
    pub fn parse(variable: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Self> {
        let verb = Verb::from_environment(variable)?;
        let config: Map<String, Value> =
            serde_json::from_slice(stdin).map_err(|error| Error::decode("the network configuration", &error))?;
        let common: Common = decode(&config)?;
        let version = common.cni_version.unwrap_or_default();
        let version: Version = version.parse()?;
        if version < verb.since() {
            return Err(Error::version(version.as_str(), &format!("it does not have {}", verb.as_str())));
        }
        if !is_identifier(&common.name) {
            return Err(Error::Config(format!(
                "\"name\" is {:?}: expected letters, digits, '_', '.' or '-', a letter or digit first",
                common.name
            )));
        }
        let previous = common.prev_result.map(|value| CniResult::from_json(&value, "prevResult")).transpose()?;
        let mut call = Self {
            verb,
            container_id: String::new(),
            netns: None,
            ifname: String::new(),
            args: args(&variable("CNI_ARGS").unwrap_or_default())?,
            bin_dirs: env::split_paths(&variable("CNI_PATH").unwrap_or_default()).collect(),
            version,
            network: common.name,
            config,
            previous,
            depth: 0,
        };
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            call.read_attachment(variable)?;
        }
        Ok(call)
    }

    fn read_attachment(&mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        self.container_id = required(variable, "CNI_CONTAINERID")?;
        if !is_identifier(&self.container_id) {
            return Err(Error::Environment {
                variable: "CNI_CONTAINERID",
                detail: format!("{:?} has a character other than letters, digits, '_', '.', '-'", self.container_id),
            });
        }
        self.ifname = required(variable, "CNI_IFNAME")?;
        let bad = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | ':' | '%' | '\0');
        if self.ifname.len() > 15 || matches!(self.ifname.as_str(), "." | "..") || self.ifname.contains(bad) {
            return Err(Error::Environment {
                variable: "CNI_IFNAME",
                detail: format!("{:?} cannot name an interface", self.ifname),
            });
        }
        self.netns = match self.verb {
            Verb::Del => variable("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from),
            _ => Some(PathBuf::from(required(variable, "CNI_NETNS")?)),
        };
        Ok(())
    }

    /// The configuration in the shape that a plugin expects.
    ///
    /// # Errors
    /// [`Error::Decode`] for a field of the wrong type.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        decode(&self.config)
    }

    /// The container's network namespace, and its links and routes.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`] when it is gone, also when only its file is left (as after a reboot).
    pub fn open_pod(&self) -> Result<(Namespace, RouteSocket)> {
        let path = self.netns.as_deref().unwrap_or(Path::new(""));
        let gone = |why: &str| Error::UnknownContainer(format!("network namespace {}: {why}", path.display()));
        let namespace = Namespace::open(path).map_err(|error| match error.is_not_found() {
            true => gone("it is gone"),
            false => error.into(),
        })?;
        let route = RouteSocket::open_in(namespace.as_fd()).map_err(|error| match error.is_invalid_argument() {
            true => gone("the file is no network namespace"),
            false => error.into(),
        })?;
        Ok((namespace, route))
    }

    /// The container's links and routes, or `None` when it is gone: for teardown.
    ///
    /// # Errors
    /// It exists but cannot be opened.
    pub fn open_pod_if_there(&self) -> Result<Option<RouteSocket>> {
        if self.netns.is_none() {
            return Ok(None);
        }
        match self.open_pod() {
            Ok((_, route)) => Ok(Some(route)),
            Err(Error::UnknownContainer(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The result that CHECK compares with.
    ///
    /// # Errors
    /// [`Error::Config`] when the caller gave none.
    pub fn required_previous(&self) -> Result<&CniResult> {
        let missing = || Error::Config(format!("{} needs \"prevResult\"", self.verb.as_str()));
        self.previous.as_ref().ok_or_else(missing)
    }

    /// (GC) The attachments that stay, as container id and interface name.
    ///
    /// # Errors
    /// [`Error::Config`] when the list is missing: everything would be released.
    pub fn valid_attachments(&self) -> Result<Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let field = "cni.dev/valid-attachments";
        let value = self.config.get(field).ok_or_else(|| Error::Config(format!("GC needs {field:?}")))?;
        let valid: Vec<Valid> = Deserialize::deserialize(value).map_err(|error| Error::decode(field, &error))?;
        Ok(valid.into_iter().map(|valid| (valid.container_id, valid.ifname)).collect())
    }

    /// Calls another plugin for the same attachment: one of ours in this process, any other from `CNI_PATH`. Returns its
    /// result for ADD.
    ///
    /// # Errors
    /// What the other plugin reports; [`Error::Config`] when there is no such plugin.
    pub fn delegate(&self, verb: Verb, mut config: Map<String, Value>) -> Result<Option<CniResult>> {
        config.insert("cniVersion".to_owned(), json!(self.version));
        config.insert("name".to_owned(), json!(self.network));
        let Some(kind) = config.get("type").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Error::Config("a delegate without \"type\"".to_owned()));
        };
        if let Some(ours) = plugin::named(&kind) {
            let previous = config.get("prevResult").map(|value| CniResult::from_json(value, "prevResult"));
            if self.depth == DEEPEST {
                return Err(Error::Config(format!("plugins delegate to each other in a circle, last to {kind}")));
            }
            let call = Self { verb, config, previous: previous.transpose()?, depth: self.depth + 1, ..self.clone() };
            return plugin::call(ours, &call);
        }
        let written = execute(&kind, &self.environment(verb), &config)?;
        match verb {
            Verb::Add => CniResult::from_json(&written, "the result of the delegate").map(Some),
            _ => Ok(None),
        }
    }

    fn environment(&self, verb: Verb) -> Environment {
        let mut variables = BTreeMap::new();
        if !self.container_id.is_empty() {
            let args: Vec<String> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let netns = self.netns.as_deref().map_or(String::new(), |path| path.display().to_string());
            variables.insert("CNI_CONTAINERID", self.container_id.clone());
            variables.insert("CNI_NETNS", netns);
            variables.insert("CNI_IFNAME", self.ifname.clone());
            variables.insert("CNI_ARGS", args.join(";"));
        }
        Environment { verb, bin_dirs: self.bin_dirs.clone(), variables }
    }
}

fn decode<T: DeserializeOwned>(config: &Map<String, Value>) -> Result<T> {
    T::deserialize(Value::Object(config.clone())).map_err(|error| Error::decode("the network configuration", &error))
}

fn required(variable: &dyn Fn(&str) -> Option<String>, name: &'static str) -> Result<String> {
    let value = variable(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| Error::Environment { variable: name, detail: "it is missing".to_owned() })
}

/// `KEY=VALUE;KEY=VALUE`.
fn args(text: &str) -> Result<BTreeMap<String, String>> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Error::Environment { variable: "CNI_ARGS", detail: format!("{pair:?} is not KEY=VALUE") }),
        })
        .collect()
}

/// Names of containers and networks; they become parts of file names.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::call;

    fn parse(variables: &[(&str, &str)], stdin: &str) -> Result<Call> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Call::parse(&variable, stdin.as_bytes())
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "box"),
        ("CNI_NETNS", "/run/netns/box"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"),
    ];
    const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"net","type":"bridge"}"#;

    #[test]
    fn a_call_is_read_whole() {
        let call = parse(&ADD, CONFIG).unwrap();
        assert_eq!((call.verb, call.version, call.network.as_str()), (Verb::Add, Version::V1_0_0, "net"));
        assert_eq!(call.netns.as_deref(), Some(Path::new("/run/netns/box")));
        assert_eq!(call.args["K8S_POD_NAME"], "web");
    }

    #[test]
    fn what_is_wrong_gets_the_code_of_the_specification() {
        for (variable, value, code) in [
            ("CNI_COMMAND", "", 4),
            ("CNI_COMMAND", "FROB", 4),
            ("CNI_COMMAND", "STATUS", 1),
            ("CNI_CONTAINERID", "", 4),
            ("CNI_CONTAINERID", "../../etc", 4),
            ("CNI_NETNS", "", 4),
            ("CNI_IFNAME", "", 4),
            ("CNI_IFNAME", "a/b", 4),
            ("CNI_IFNAME", "an-interface-name", 4),
            ("CNI_ARGS", "nonsense", 4),
        ] {
            let variables = ADD.map(|(name, old)| (name, if name == variable { value } else { old }));
            assert_eq!(parse(&variables, CONFIG).unwrap_err().code(), code, "{variable}={value}");
        }
        for (config, code) in [
            ("", 6),
            ("[]", 6),
            (r#"{"cniVersion":"1.0.0","name":7}"#, 6),
            (r#"{"name":"net"}"#, 1),
            (r#"{"cniVersion":"0.2.0","name":"net"}"#, 1),
            (r#"{"cniVersion":"1.0.0"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"../net"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"net","prevResult":{"ips":[{"address":"nowhere"}]}}"#, 6),
        ] {
            assert_eq!(parse(&ADD, config).unwrap_err().code(), code, "{config}");
        }
    }

    #[test]
    fn del_needs_no_namespace_and_check_needs_0_4_0() {
        let del = ADD.map(|(name, value)| match name {
            "CNI_COMMAND" => (name, "DEL"),
            "CNI_NETNS" => (name, ""),
            _ => (name, value),
        });
        assert_eq!(parse(&del, CONFIG).unwrap().netns, None);
        let check = ADD.map(|(name, value)| (name, if name == "CNI_COMMAND" { "CHECK" } else { value }));
        assert_eq!(parse(&check, &CONFIG.replace("1.0.0", "0.3.1")).unwrap_err().code(), 1);
    }

    #[test]
    fn plugins_that_call_each_other_in_a_circle_are_stopped() {
        let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "bridge"}});
        let call = call(Verb::Status, "", &config).unwrap();
        let error = plugin::call(plugin::named("bridge").unwrap(), &call).unwrap_err();
        assert_eq!(error.code(), 7);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z0-9./:]{0,12}".prop_map(Value::from),
            Just(json!("10.0.0.0/8")),
        ];
        let keys = prop::sample::select(vec![
            "cniVersion",
            "name",
            "type",
            "ipam",
            "ranges",
            "subnet",
            "rangeStart",
            "gateway",
            "routes",
            "dst",
            "dns",
            "prevResult",
            "ips",
            "address",
            "interfaces",
            "runtimeConfig",
            "portMappings",
            "delegate",
            "mtu",
            "args",
            "cni",
        ]);
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_on_standard_input_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for plugin in crate::PLUGINS {
                let output = crate::run(plugin, &|name| ADD.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()), &bytes);
                prop_assert!(!output.success);
                prop_assert!(serde_json::from_str::<crate::error::ErrorReport>(&output.stdout).is_ok());
            }
        }

        /// STATUS reads the whole configuration and touches nothing.
        #[test]
        fn any_configuration_is_answered(mut config in json()) {
            if let Some(fields) = config.as_object_mut() {
                fields.insert("cniVersion".to_owned(), json!("1.1.0"));
                fields.insert("name".to_owned(), json!("net"));
                fields.insert("subnetFile".to_owned(), json!("/nonexistent"));
            }
            if let Ok(call) = call(Verb::Status, "", &config) {
                for plugin in crate::PLUGINS {
                    _ = plugin::call(plugin::named(plugin).unwrap(), &call);
                }
            }
        }
    }
}
