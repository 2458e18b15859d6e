use std::path::Path;

use podwire_kernel::{
    ns::Namespace,
    pci::{self, Sysfs},
    route::{Link, LinkChange, Mac, Route, RouteSocket},
};
use serde::Deserialize;

use super::Plugin;
use crate::{
    Call, CniResult, Dns, Error, Interface, Result, Verb,
    device::{is_in_user_space, move_in, move_out},
    error::all,
    ipam::Ipam,
    mark, pod,
};

/// See `host_device/README.md`.
pub struct HostDevice;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    device: String,
    #[serde(default)]
    hwaddr: String,
    #[serde(default)]
    kernelpath: String,
    #[serde(default, rename = "pciBusID")]
    pci_bus_id: String,
    #[serde(default, rename = "runtimeConfig")]
    runtime_config: RuntimeConfig,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "deviceID")]
    device_id: String,
}

impl Plugin for HostDevice {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let config = Config::of(call)?;
        let (namespace, pod) = pod::open(call)?;
        let mut add = Add { call, config: &config, namespace: &namespace, pod, taken: None };
        let added = add.run();
        if added.is_err() {
            // What matters to the caller is why ADD failed.
            _ = add.undo();
        }
        added
    }

    fn del(&self, call: &Call) -> Result<()> {
        // The address last: nobody may get one that still answers here.
        all([give_back(call), Ipam::of(call)?.call(call, Verb::Del).map(drop)])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let config = Config::of(call)?;
        let previous = call.required_previous()?;
        config.ipam.call(call, Verb::Check)?;
        if config.is_in_user_space()? { Ok(()) } else { pod::check(call, previous).map(drop) }
    }

    fn gc(&self, call: &Call) -> Result<()> {
        all([give_back_stale(call), Ipam::of(call)?.call(call, Verb::Gc).map(drop)])
    }

    fn status(&self, call: &Call) -> Result<()> {
        Config::of(call)?.ipam.call(call, Verb::Status).map(drop)
    }
}

impl Config {
    fn of(call: &Call) -> Result<Self> {
        let config: Self = call.config()?;
        let names =
            [&config.device, &config.hwaddr, &config.kernelpath, &config.pci_bus_id, &config.runtime_config.device_id];
        // Which device may come with each call only.
        if call.verb != Verb::Status && names.iter().all(|name| name.is_empty()) {
            let detail = "none of \"device\", \"hwaddr\", \"kernelpath\", \"pciBusID\" and \"runtimeConfig.deviceID\" \
                          says which device";
            return Err(Error::Config(detail.to_owned()));
        }
        if !config.kernelpath.is_empty() && !config.kernelpath.starts_with("/sys/devices/") {
            let detail = format!("\"kernelpath\" is {:?}: expected a folder below /sys/devices", config.kernelpath);
            return Err(Error::Config(detail));
        }
        Ok(config)
    }

    /// The address of the PCI device, where one is asked for.
    fn pci(&self) -> Result<Option<&str>> {
        let asked = &self.runtime_config.device_id;
        if !asked.is_empty() && Sysfs::default().has(asked)? {
            return Ok(Some(asked));
        }
        Ok(Some(self.pci_bus_id.as_str()).filter(|address| asked.is_empty() && !address.is_empty()))
    }

    fn is_in_user_space(&self) -> Result<bool> {
        self.pci()?.map_or(Ok(false), is_in_user_space)
    }

    /// The device, if it is on the host.
    fn find(&self, host: &mut RouteSocket) -> Result<Option<Link>> {
        let named = |host: &mut RouteSocket, names: Vec<String>| match names.first() {
            Some(name) => Ok(host.link(name)?),
            None => Ok(None),
        };
        if !self.device.is_empty() {
            return Ok(host.link(&self.device)?);
        }
        if !self.hwaddr.is_empty() {
            let mac: Mac = self.hwaddr.parse().map_err(|error| Error::Config(format!("\"hwaddr\": {error}")))?;
            return Ok(host.links()?.into_iter().find(|link| link.mac == Some(mac)));
        }
        if !self.kernelpath.is_empty() {
            return named(host, pci::interfaces_at(Path::new(&self.kernelpath))?);
        }
        match self.pci()? {
            Some(address) => named(host, Sysfs::default().interfaces(address)?),
            None => {
                let bus = Path::new("/sys/bus/auxiliary/devices");
                named(host, pci::interfaces_at(&bus.join(&self.runtime_config.device_id))?)
            }
        }
    }

    fn missing(&self) -> Error {
        let fields = [
            ("device", &self.device),
            ("hwaddr", &self.hwaddr),
            ("kernelpath", &self.kernelpath),
            ("runtimeConfig.deviceID", &self.runtime_config.device_id),
            ("pciBusID", &self.pci_bus_id),
        ];
        let (field, value) = fields.into_iter().find(|(_, value)| !value.is_empty()).unwrap_or(fields[0]);
        Error::Config(format!(
            "there is no device on the host that \"{field}\" {value:?} tells: does a container have it?"
        ))
    }
}

/// One ADD.
struct Add<'a> {
    call: &'a Call,
    config: &'a Config,
    namespace: &'a Namespace,
    pod: RouteSocket,
    /// The device as it was on the host.
    taken: Option<Link>,
}

impl Add<'_> {
    fn run(&mut self) -> Result<CniResult> {
        let Self { call, config, .. } = self;
        let in_user_space = config.is_in_user_space()?;
        if !in_user_space {
            let mut host = RouteSocket::open()?;
            let link = config.find(&mut host)?.ok_or_else(|| config.missing())?;
            // DEL reads there what to call it on the host.
            host.change_link(link.index, &[LinkChange::Alias(&label(call, name_to_keep(call, &link)?))])?;
            move_in(call, &mut host, self.taken.insert(link), self.namespace)?;
        }
        let assigned = config.ipam.call(call, Verb::Add)?;
        if assigned.as_ref().is_some_and(|assigned| assigned.ips.is_empty()) {
            return Err(Error::NoAddress("the IPAM plugin gave no address".to_owned()));
        }
        let mut result = assigned.unwrap_or_default();
        if config.ipam.is_set() {
            result.dns.clone_from(&config.dns);
        }
        result.interfaces = vec![match in_user_space {
            true => Interface { name: call.ifname.clone(), sandbox: pod::sandbox(call), ..Interface::default() },
            false => {
                let link = pod::configure(call, self.namespace, &mut self.pod, &result, false)?;
                pod::describe(&link, pod::sandbox(call))
            }
        }];
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        Ok(result)
    }

    fn undo(&self) -> Result<()> {
        _ = self.config.ipam.call(self.call, Verb::Del);
        give_back(self.call)?;
        let Some(taken) = self.taken.as_ref().filter(|taken| taken.up) else { return Ok(()) };
        let mut host = RouteSocket::open()?;
        let back = host.link(&taken.name)?;
        back.map_or(Ok(()), |link| Ok(host.change_link(link.index, &[LinkChange::Up(true)])?))
    }
}

/// Takes the device from the container; and where the container is gone and the kernel has put the device back, gives it its
/// name again.
fn give_back(call: &Call) -> Result<()> {
    let mut host = RouteSocket::open()?;
    let owner = owner(&call.network, &call.container_id, &call.ifname);
    if let Some(mut pod) = call.open_pod_if_there()?
        && let Some(link) = pod.link(&call.ifname)?
        && let Some(alias) = &link.alias
    {
        if let Some(name) = alias.strip_prefix(&owner) {
            move_out(&mut pod, &link, name)?;
        } else if is_of_the_reference_plugin(call, &link, alias) {
            move_out(&mut pod, &link, alias)?;
            let back = host.link(alias)?.filter(|link| link.alias.as_ref() == Some(alias));
            back.map_or(Ok(()), |link| host.change_link(link.index, &[LinkChange::Alias("")]))?;
        }
    }
    restore(&mut host, |label| label.starts_with(&owner))
}

/// Whether an alias is what the reference plugin writes: the name on the host alone. Anybody may have written such a word, so it
/// counts only on the very device that the configuration asks for, as far as that can be told in the container.
fn is_of_the_reference_plugin(call: &Call, link: &Link, alias: &str) -> bool {
    const IFNAMSIZ: usize = 16;
    let is_name = alias.len() < IFNAMSIZ && !alias.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    is_name
        && call.config::<Config>().is_ok_and(|config| {
            let same =
                |asked: &str, is: Option<&str>| asked.is_empty() || is.is_none_or(|is| is.eq_ignore_ascii_case(asked));
            let mac = link.mac.map(|mac| mac.to_string());
            // Of several fields the first counts.
            match (config.device.as_str(), config.hwaddr.as_str()) {
                ("", "") => config.pci().is_ok_and(|pci| same(pci.unwrap_or_default(), link.parent.as_deref())),
                ("", hwaddr) => same(hwaddr, mac.as_deref()),
                (device, _) => same(device, Some(alias)),
            }
        })
}

/// (ADD) What a device is to be called again on the host.
///
/// # Errors
/// [`Error::TryAgain`] when it is marked as another attachment's: a container that is gone had it, and its DEL, which needs the
/// mark, is still to come; or it belongs to a container's interface.
fn name_to_keep<'a>(call: &Call, link: &'a Link) -> Result<&'a str> {
    let alias = link.alias.as_deref().unwrap_or_default();
    if let Some(name) = alias.strip_prefix(&owner(&call.network, &call.container_id, &call.ifname)) {
        return Ok(name);
    }
    if [LABEL, mark::LABEL].iter().any(|label| alias.starts_with(label)) {
        let detail = "until DEL or GC of that attachment takes it away";
        return Err(Error::TryAgain(format!("device {} is marked as another's ({alias:?}) {detail}", link.name)));
    }
    Ok(&link.name)
}

/// (GC) Gives the devices on the host their names again that containers had which are gone.
fn give_back_stale(call: &Call) -> Result<()> {
    let valid = call.valid_attachments()?;
    let valid: Vec<String> = valid.iter().map(|(id, ifname)| owner(&call.network, id, ifname)).collect();
    let network = format!("{LABEL}{}/", call.network);
    let is_stale = |label: &str| label.starts_with(&network) && !valid.iter().any(|owner| label.starts_with(owner));
    restore(&mut RouteSocket::open()?, is_stale)
}

/// Makes the devices on the host with these labels what they were. They stay down, as a device does that changes its namespace.
fn restore(host: &mut RouteSocket, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let links = host.links()?;
    let labelled = links.iter().filter_map(|link| Some((link, link.alias.as_deref().filter(|label| wanted(label))?)));
    all(labelled.map(|(link, label)| {
        let name = label.rsplit_once(WAS).map_or(link.name.as_str(), |(_, name)| name);
        if name != link.name {
            host.change_link(link.index, &[LinkChange::Up(false)])?;
            host.change_link(link.index, &[LinkChange::Name(name)])?;
        }
        Ok(host.change_link(link.index, &[LinkChange::Alias("")])?)
    }))
}

const LABEL: &str = "podwire-device:";
const WAS: &str = " was ";

/// What is written on a device, as its alias: who has it, and its name on the host.
fn label(call: &Call, name: &str) -> String {
    format!("{}{name}", owner(&call.network, &call.container_id, &call.ifname))
}

/// The label without the name at its end.
fn owner(network: &str, container_id: &str, ifname: &str) -> String {
    /// Of the 255 bytes of an alias, without the name and the word before it.
    const LONGEST: usize = 235;
    let mut owner = format!("{LABEL}{network}/{container_id}/{ifname}");
    owner.truncate(owner.floor_char_boundary(LONGEST));
    owner + WAS
}
