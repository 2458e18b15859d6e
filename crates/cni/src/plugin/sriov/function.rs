//! One virtual function: what it is on the card and on the host, given to a container and taken back.

use std::{fs::File, os::fd::AsFd, path::Path, thread, time::Duration};

use podwire_kernel::{
    ns::Namespace,
    pci::Sysfs,
    route::{Link, LinkChange, LinkKind, Mac, Route, RouteSocket, VfChange, VirtualFunction},
};

use super::{
    config::{Config, Settings},
    store::{Given, Original, Store},
};
use crate::{
    Call, Error, Result,
    device::{is_in_user_space, move_in, move_out},
};

/// A virtual function and its card.
pub struct Function {
    host: RouteSocket,
    /// Its address on the bus.
    address: String,
    /// The card's own interface.
    physical: Link,
    /// Its number on the card.
    id: u32,
}

impl Function {
    /// The function with this address.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none.
    pub fn open(address: &str) -> Result<Self> {
        let (sysfs, mut host) = (Sysfs::default(), RouteSocket::open()?);
        if !sysfs.has(address)? {
            return Err(Error::Config(format!("there is no PCI device {address}, which \"deviceID\" asks for")));
        }
        let none = || Error::Config(format!("PCI device {address} is no virtual function of an SR-IOV card"));
        let card = sysfs.physical_function(address)?.ok_or_else(none)?;
        let all = sysfs.virtual_functions(&card)?;
        let (id, _) = all.into_iter().find(|(_, other)| other == address).ok_or_else(none)?;
        let hidden =
            || Error::Config(format!("PCI device {card}, the card of {address}, has no interface on the host"));
        let name = sysfs.interfaces(&card)?.into_iter().next().ok_or_else(hidden)?;
        let physical = host.link(&name)?.ok_or_else(hidden)?;
        Ok(Self { host, address: address.to_owned(), physical, id })
    }

    /// What the card says of it.
    pub fn state(&mut self) -> Result<VirtualFunction> {
        let all = self.host.virtual_functions(self.physical.index)?;
        let gone = || Error::Config(format!("{} has no virtual function {}", self.physical.name, self.id));
        all.into_iter().find(|function| function.id == self.id).ok_or_else(gone)
    }

    /// Its interface, where that is on the host.
    fn interface(&mut self) -> Result<Option<Link>> {
        match Sysfs::default().interfaces(&self.address)?.first() {
            Some(name) => Ok(self.host.link(name)?),
            None => Ok(None),
        }
    }

    /// Gives it to the container as `settings` say; whether there is an interface to give addresses to. `store` knows of it
    /// before the first change: if this fails, [`take_back`] undoes what was done.
    pub fn give(&mut self, call: &Call, settings: &Settings, store: &Store, pod: &Namespace) -> Result<bool> {
        let link = self.interface()?;
        if link.is_none() && !is_in_user_space(&self.address)? {
            let detail = "has no interface on the host: a container has it, or its driver makes none";
            return Err(Error::Config(format!("virtual function {} {detail}", self.address)));
        }
        let now = self.state()?;
        let original = Original::of(&now, link.as_ref().map(|link| (link.name.as_str(), link.mac, link.mtu)));
        store.write(call, &Given::new(call, &self.address, &self.physical.name, self.id, original))?;
        if let (Some(link), Some(mac)) = (&link, settings.mac) {
            // First by the function itself: some cards forbid that once the host has set it. Others set it by what follows.
            _ = self.host.change_link(link.index, &[LinkChange::Mac(mac)]);
        }
        let mut changes = settings.changes(&now);
        // The card may only know it from the function itself yet.
        changes.retain(|change| !matches!(change, VfChange::Mac(_)));
        changes.extend(settings.mac.map(VfChange::Mac));
        self.host.change_virtual_function(self.physical.index, self.id, &changes)?;
        if let Some(link) = &link {
            move_in(call, &mut self.host, link, pod)?;
        }
        Ok(link.is_some())
    }

    /// Makes it on the card what it was.
    fn restore(&mut self, original: &Original) -> Result<()> {
        let now = self.state()?;
        let changes = Settings::all_of(&original.function(&now)).changes(&now);
        Ok(self.host.change_virtual_function(self.physical.index, self.id, &changes)?)
    }

    /// Makes its interface on the host what it was.
    fn restore_interface(&mut self, link: &Link, original: &Original) -> Result<()> {
        self.host.change_link(link.index, &[LinkChange::Up(false)])?;
        if link.name != original.interface {
            self.host.change_link(link.index, &[LinkChange::Name(&original.interface)])?;
        }
        if original.mtu != 0 && original.mtu != link.mtu {
            self.host.change_link(link.index, &[LinkChange::Mtu(original.mtu)])?;
        }
        if let Ok(mac) = original.effective_mac.parse() {
            set_mac(&mut self.host, link.index, mac)?;
        }
        Ok(())
    }
}

/// Gives the interface a MAC address. Some cards take a while over what the host has told them of the function and refuse
/// meanwhile.
pub fn set_mac(route: &mut RouteSocket, index: u32, mac: Mac) -> Result<()> {
    const TRIES: u32 = 20;
    let has =
        |route: &mut RouteSocket| Ok::<_, Error>(route.link_by_index(index)?.is_some_and(|link| link.mac == Some(mac)));
    for left in (0..TRIES).rev() {
        if has(route)? {
            return Ok(());
        }
        let set = route.change_link(index, &[LinkChange::Mac(mac)]);
        if left == 0 {
            set?;
        } else if set.is_err() || !has(route)? {
            thread::sleep(Duration::from_millis(100));
        }
    }
    match has(route)? {
        true => Ok(()),
        false => Err(Error::TryAgain(format!("the card has not given link #{index} MAC address {mac}"))),
    }
}

/// Chooses the function that `config` asks for, reclaims it if its container is gone, and locks it.
pub fn choose(config: &Config, store: &Store) -> Result<(Function, File)> {
    if let Some(address) = &config.device_id {
        let function = Function::open(address)?;
        let lock = store.lock(address)?;
        return match reclaim(store, address)? {
            true => Ok((function, lock)),
            false => Err(Error::Exists(format!("virtual function {address} is another container's"))),
        };
    }
    let needed = || Error::Config("neither \"deviceID\" nor \"master\" says which virtual function".to_owned());
    let master = config.master.as_ref().ok_or_else(needed)?;
    let sysfs = Sysfs::default();
    let missing = || Error::Config(format!("\"master\" {master} is no PCI device of the host"));
    let card = sysfs.address_of(master).map_err(|_| missing())?.ok_or_else(missing)?;
    let all = sysfs.virtual_functions(&card)?;
    let free = |address: &str| {
        let lock = store.lock(address)?;
        let usable = || Ok::<_, Error>(!sysfs.interfaces(address)?.is_empty() || is_in_user_space(address)?);
        if reclaim(store, address)? && usable()? { Ok(Some((Function::open(address)?, lock))) } else { Ok(None) }
    };
    first_free(master, all.iter().map(|(_, address)| address.as_str()), free)
}

/// The first of the functions of `master` with these addresses that is free, which `free` says.
///
/// # Errors
/// [`Error::NoAddress`] names those that cannot be had for another reason than that a container has them: one that is broken
/// does not stand before others.
pub(super) fn first_free<'a, T>(
    master: &str,
    addresses: impl Iterator<Item = &'a str>,
    free: impl Fn(&str) -> Result<Option<T>>,
) -> Result<T> {
    let (mut count, mut broken) = (0, String::new());
    for address in addresses {
        match free(address) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => broken.push_str(&format!("; {address}: {error}")),
        }
        count += 1;
    }
    Err(Error::NoAddress(format!("none of the {count} virtual functions of {master} is free{broken}")))
}

/// Whether the function is free, also since its container is gone without a DEL: then it is taken back first. A file that
/// names an owner counts only with one that says what the function was like: else a crash was before any change, or after all.
fn reclaim(store: &Store, address: &str) -> Result<bool> {
    let given: Vec<Given> = store.all().into_iter().filter(|given| given.device_id == address).collect();
    let owner = store.owner(address)?;
    if given.is_empty() {
        return Ok(true);
    }
    if owner.is_none_or(|netns| netns.try_exists().unwrap_or(true)) {
        return Ok(false);
    }
    given.iter().try_for_each(|given| take_back(store, given, None))?;
    // What is not back yet is still written down.
    Ok(given.iter().all(|given| store.has(given).is_ok_and(|has| !has)))
}

/// Takes a function back from a container, or from wherever it got to, and makes it what it was. `pod`: the container, where
/// the caller knows it; else the one that is written down.
///
/// What is still in a namespace that cannot be found stays written down: whoever wants the function next goes on.
pub fn take_back(store: &Store, given: &Given, pod: Option<(RouteSocket, &str)>) -> Result<()> {
    if !Sysfs::default().has(&given.device_id)? {
        // The card has been told to have fewer of them.
        return store.forget(given);
    }
    let mut function = Function::open(&given.device_id)?;
    function.restore(&given.original)?;
    if given.original.interface.is_empty() {
        return store.forget(given);
    }
    let mut link = function.interface()?;
    if link.is_none() {
        if let Some((mut pod, ifname)) = pod
            && let Some(inside) = inside(&mut pod, given, ifname)?
        {
            move_out(&mut pod, &inside, &given.original.interface)?;
        }
        link = wait_for(&mut function)?;
    }
    let Some(link) = link else { return Ok(()) };
    function.restore_interface(&link, &given.original)?;
    // By the function's own word the card may have noted its MAC address.
    function.restore(&given.original)?;
    store.forget(given)
}

/// The function's interface in a container. Kernels that do not tell which device a link is (before 5.14) are believed when
/// there is a physical one under the name that it got.
fn inside(pod: &mut RouteSocket, given: &Given, ifname: &str) -> Result<Option<Link>> {
    let untold =
        |link: &Link| link.parent.is_none() && link.name == ifname && link.kind == LinkKind::Other(String::new());
    let links = pod.links()?;
    let found = links.into_iter().find(|link| link.parent.as_ref() == Some(&given.device_id) || untold(link));
    Ok(found.filter(|link| link.name != "lo"))
}

/// The interface, once the kernel has put it back: it takes namespaces apart in its own time.
fn wait_for(function: &mut Function) -> Result<Option<Link>> {
    for _ in 0..200 {
        if let Some(link) = function.interface()? {
            return Ok(Some(link));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// Opens the namespace at `path`, if it is there.
pub fn open_netns(path: &Path) -> Option<RouteSocket> {
    let namespace = Namespace::open(path).ok()?;
    RouteSocket::open_in(namespace.as_fd()).ok()
}
