//! One suite for the fake and the kernel. This machine's kernel may have no IPVS: there the fake alone runs it, and the
//! kernel does in the vm tier (`PODWIRE_TIER=vm`), where its absence is a failure.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use podwire_model::{Family, Protocol};

use super::{wire, *};
use crate::{
    route::{LinkChange, Route, RouteSocket},
    test_support::in_new_netns,
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn errno(result: crate::Result<()>) -> Option<i32> {
    result.unwrap_err().errno()
}

fn suite(ipvs: &mut dyn Ipvs) {
    assert!(ipvs.info().unwrap().version >= (1, 2, 0));
    assert_eq!(ipvs.services().unwrap(), []);
    for (vip, real) in [("10.96.0.10:80", "10.244.0.2:8080"), ("[fd00:10:96::a]:80", "[fd00:10:244::2]:8080")] {
        services_and_destinations(ipvs, address(vip), address(real));
    }
    timeouts(ipvs);
}

fn services_and_destinations(ipvs: &mut dyn Ipvs, vip: SocketAddr, real: SocketAddr) {
    let family = Family::of(&vip.ip());
    let prefix = if family == Family::V4 { 32 } else { 128 };
    let persistence = Some(Persistence { timeout: Duration::from_secs(10800), prefix });
    let tcp = Service::new(ServiceKey::Address(Protocol::Tcp, vip), "rr");
    let udp = Service { persistence, ..Service::new(ServiceKey::Address(Protocol::Udp, vip), "wlc") };
    let sctp = Service::new(ServiceKey::Address(Protocol::Sctp, vip), "sed");
    let hashed = Service { flags: flags::SCHEDULER_1, ..Service::new(ServiceKey::Mark(family, 0x5000_0001), "sh") };
    let all = [tcp.clone(), udp.clone(), sctp, hashed];
    ipvs.change(&all.clone().map(Change::AddService)).unwrap();
    let listed: BTreeSet<_> = ipvs.services().unwrap().into_iter().map(|service| service.key).collect();
    assert_eq!(listed, all.iter().map(|service| service.key).collect());
    for service in ipvs.services().unwrap() {
        assert!(all.contains(&service), "{service:?}");
    }
    assert_eq!(errno(ipvs.change(&[Change::AddService(tcp.clone())])), Some(libc::EEXIST));
    assert_eq!(errno(ipvs.change(&[Change::SetService(Service::new(tcp.key, "nosuch"))])), Some(libc::ENOENT));
    let changed = Service { scheduler: "lc".into(), persistence, ..tcp.clone() };
    ipvs.change(&[Change::SetService(changed.clone())]).unwrap();
    assert!(ipvs.services().unwrap().contains(&changed));

    let to = Destination::new(real, 1);
    let limited = Destination { upper_threshold: 9, lower_threshold: 4, ..Destination::new(real, 7) };
    let add = |to| Change::AddDestination(tcp.key, to);
    ipvs.change(&[add(to)]).unwrap();
    // The others of a batch are made although one is refused.
    let second = Destination::new(SocketAddr::new(real.ip(), 8081), 1);
    let error = ipvs.change(&[add(to), add(second)]).unwrap_err();
    assert!(error.already_exists() && error.to_string().contains(&format!("add destination {real}")), "{error}");
    let found: Vec<_> = ipvs.destinations(&tcp.key).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&Found { destination: to, connections: Connections::default() }), "{found:?}");
    ipvs.change(&[Change::SetDestination(tcp.key, limited)]).unwrap();
    assert!(ipvs.destinations(&tcp.key).unwrap().iter().any(|found| found.destination == limited));
    let contradiction = Destination { lower_threshold: 10, ..limited };
    assert_eq!(errno(ipvs.change(&[Change::SetDestination(tcp.key, contradiction)])), Some(libc::ERANGE));
    ipvs.change(&[Change::DeleteDestination(tcp.key, real)]).unwrap();
    assert_eq!(errno(ipvs.change(&[Change::DeleteDestination(tcp.key, real)])), Some(libc::ENOENT));
    assert_eq!(errno(ipvs.change(&[Change::SetDestination(tcp.key, to)])), Some(libc::ENOENT));

    ipvs.change(&all.map(|service| Change::DeleteService(service.key))).unwrap();
    assert_eq!(ipvs.services().unwrap(), []);
    assert_eq!(ipvs.destinations(&tcp.key).unwrap(), []);
    for change in [Change::DeleteService(tcp.key), Change::SetService(tcp.clone()), add(to)] {
        assert_eq!(errno(ipvs.change(&[change])), Some(libc::ESRCH));
    }
}

fn timeouts(ipvs: &mut dyn Ipvs) {
    let seconds = Duration::from_secs;
    let udp = ipvs.timeouts().unwrap().udp;
    ipvs.set_timeouts(&Timeouts { tcp: seconds(1000), tcp_fin: seconds(60), udp: Duration::ZERO }).unwrap();
    assert_eq!(ipvs.timeouts().unwrap(), Timeouts { tcp: seconds(1000), tcp_fin: seconds(60), udp });
}

#[test]
fn the_fake_refuses_what_the_kernel_refuses() {
    suite(&mut Fake::new());
}

/// Without any local address the kernel refuses every destination: it asks its table of local addresses about them.
fn in_netns_with_loopback(test: impl FnOnce() + Send) {
    in_new_netns(|| {
        RouteSocket::open().unwrap().change_link(1, &[LinkChange::Up(true)]).unwrap();
        test();
    });
}

#[test]
fn the_kernel_does_the_same() {
    in_netns_with_loopback(|| match Kernel::open() {
        Ok(mut kernel) => {
            suite(&mut kernel);
            every_scheduler(&mut kernel);
        }
        Err(error) if error.is_not_found() && std::env::var_os("PODWIRE_TIER").is_none_or(|tier| tier != "vm") => {
            eprintln!("the kernel has no IPVS; this is tested in the vm tier: {error}");
        }
        Err(error) => panic!("{error}"),
    });
}

fn every_scheduler(kernel: &mut Kernel) {
    let key = ServiceKey::Address(Protocol::Tcp, address("10.96.0.10:80"));
    for scheduler in SCHEDULERS {
        match kernel.change(&[Change::AddService(Service::new(key, scheduler))]) {
            // Debian 12 leaves this one out.
            Err(error) if scheduler == "twos" && error.is_not_found() => continue,
            added => added.unwrap_or_else(|error| panic!("{error}")),
        }
        assert_eq!(&*kernel.services().unwrap()[0].scheduler, scheduler);
        kernel.change(&[Change::DeleteService(key)]).unwrap();
    }
}

#[test]
fn many_changes_go_in_few_calls_and_every_refusal_is_seen() {
    in_netns_with_loopback(|| {
        let Ok(mut kernel) = Kernel::open() else { return };
        let key = ServiceKey::Address(Protocol::Tcp, address("10.96.0.10:80"));
        kernel.change(&[Change::AddService(Service::new(key, "rr"))]).unwrap();
        let to = |n: u16| Change::AddDestination(key, Destination::new(address(&format!("10.244.0.2:{n}")), 1));
        let all: Vec<_> = (1..=3000).map(to).collect();
        kernel.change(&all).unwrap();
        assert_eq!(kernel.destinations(&key).unwrap().len(), 3000);
        assert!(kernel.change(&all).unwrap_err().already_exists());
    });
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = (wire::service(&bytes), wire::info(&bytes), wire::timeouts(&bytes));
        let _ = (wire::destination(&bytes, Family::V4), wire::destination(&bytes, Family::V6));
    }
}
