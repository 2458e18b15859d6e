//! What others change is noticed within two looks, and repaired.

use podwire_kernel::{
    ipset::Ipset as _,
    iptables::Table,
    ipvs::{Change, Destination, Ipvs as _, ServiceKey},
    route::{Address, Route as _},
};
use podwire_model::{Family, Protocol};
use podwire_proxy::{
    Changes,
    mode::{
        Mode,
        ipvs::{Ipvs, kernel::Fake},
    },
};
use podwire_testkit::{build::ip, packet_table};

use super::{changes::shape, table::applied};

fn repaired(what: &str, interfere: impl FnOnce(&mut Fake)) {
    let world = packet_table::world();
    let mut mode: Ipvs<Fake> = applied(&world);
    let before = shape(mode.kernel());
    for _ in 0..3 {
        assert!(!mode.disturbed().unwrap(), "{what}: nothing happened yet");
    }
    interfere(mode.kernel_mut());
    assert!(mode.disturbed().unwrap() || mode.disturbed().unwrap(), "{what}: not noticed");
    mode.apply(Changes::default()).unwrap();
    mode.tidy().unwrap();
    let after = shape(mode.kernel());
    let differs: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(differs.is_empty(), "{what}: {differs:#?}");
    assert!(!mode.disturbed().unwrap() && !mode.disturbed().unwrap(), "{what}: noticed twice");
}

#[test]
fn whatever_is_deleted_comes_back() {
    let vip = ServiceKey::Address(Protocol::Tcp, "10.96.0.10:80".parse().unwrap());
    let pod = "10.244.0.2:8080".parse().unwrap();
    repaired("virtual server", |fake| fake.ipvs.change(&[Change::DeleteService(vip)]).unwrap());
    repaired("destination", |fake| fake.ipvs.change(&[Change::DeleteDestination(vip, pod)]).unwrap());
    repaired("weight", |fake| fake.ipvs.change(&[Change::SetDestination(vip, Destination::new(pod, 7))]).unwrap());
    repaired("all virtual servers", |fake| {
        let all: Vec<_> = fake.ipvs.table().keys().copied().map(Change::DeleteService).collect();
        fake.ipvs.change(&all).unwrap();
    });
    repaired("set entry", |fake| {
        let entry = *fake.ipset.table()["KUBE-CLUSTER-IP"].1.keys().next().unwrap();
        fake.ipset.remove("KUBE-CLUSTER-IP", &[entry]).unwrap();
    });
    repaired("set", |fake| fake.ipset.destroy("KUBE-IPVS-IPS").unwrap());
    repaired("address", |fake| {
        let device = fake.route.link("kube-ipvs0").unwrap().unwrap().index;
        fake.route.delete_address(&Address::new(device, ip("10.96.0.10"))).unwrap();
    });
    repaired("device", |fake| {
        let device = fake.route.link("kube-ipvs0").unwrap().unwrap().index;
        fake.route.delete_link(device).unwrap();
    });
    repaired("rule", |fake| {
        let table = fake.iptables.table_mut(Family::V4, Table::Filter);
        table.chains.get_mut("KUBE-IPVS-FILTER").unwrap().rules.pop();
    });
    repaired("jump", |fake| {
        fake.iptables.table_mut(Family::V4, Table::Nat).chains.get_mut("PREROUTING").unwrap().rules.clear();
    });
}

#[test]
fn a_virtual_server_of_someone_else_goes() {
    let other =
        podwire_kernel::ipvs::Service::new(ServiceKey::Address(Protocol::Tcp, "10.99.0.1:80".parse().unwrap()), "rr");
    repaired("another virtual server", |fake| fake.ipvs.change(&[Change::AddService(other)]).unwrap());
}
