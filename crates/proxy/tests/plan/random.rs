//! Random worlds: the plan is what the oracle says, by whatever road it came about.

use std::{net::SocketAddr, time::Duration};

use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, LoadBalancerIngress, ObjectName, Protocol, Service, ServicePort,
    ServiceType, TrafficPolicy,
};
use podwire_testkit::{
    build::{endpoint, service},
    packet_table::{
        FAMILIES, NODE, NODE_INNER, OUTSIDE, POD_A, POD_B, Packet, Pods, World, address, empty, expected, pod_ranges,
        range,
    },
    replay,
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    literal::Literal,
    support::{planned, tracker},
};

const EXTERNAL: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORTS: [u16; 2] = [80, 443];
const NODE_PORTS: [u16; 3] = [30080, 30081, 30082];

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn family() -> impl Strategy<Value = Family> {
    select(FAMILIES.to_vec())
}

/// One of the addresses, in one of the families.
fn one_of(addresses: &'static [&'static str]) -> impl Strategy<Value = std::net::IpAddr> {
    (select(addresses), family()).prop_map(|(v4, family)| address(v4, family))
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = (select(vec!["a", "b", ""]), select(PROTOCOLS.to_vec()), select(PORTS.to_vec()));
    let node_port = proptest::option::of(select(NODE_PORTS.to_vec()));
    let port = (port, node_port).prop_map(|((name, protocol, port), node_port)| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
    });
    // What the API's validation makes sure of.
    vec(port, 0..4).prop_map(|mut ports| {
        ports.sort_by_key(|port| (port.protocol, port.port));
        ports.dedup_by_key(|port| (port.protocol, port.port));
        ports.sort_by_key(|port| (port.protocol, port.node_port));
        ports.dedup_by(|a, b| a.protocol == b.protocol && a.node_port == b.node_port && a.node_port.is_some());
        ports
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let names = (select(vec!["a", "b", "c", "d"]), 0..6_u8, vec(family(), 0..3));
    let kinds = select(vec![ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer]);
    let external = (vec(one_of(&EXTERNAL), 0..3), vec((one_of(&EXTERNAL), any::<bool>()), 0..3));
    let ranges = vec((select(vec!["10.0.0.0/8", "10.244.0.0/16", "172.25.2.0/24", "0.0.0.0/0"]), family()), 0..3);
    let flags = (proptest::bool::weighted(0.1), any::<bool>());
    ((names, kinds, ports()), external, ranges, (policy(), policy()), flags).prop_map(
        |(((name, number, families), kind, ports), (external, ingress), ranges, policies, (other_proxy, sticky))| {
            let cluster_ip = format!("10.96.0.{number}");
            let mut families = families;
            families.dedup();
            Service {
                kind,
                cluster_ips: families.into_iter().map(|family| address(&cluster_ip, family)).collect(),
                ports,
                external_ips: external,
                load_balancer: ingress.into_iter().map(|(ip, proxied)| LoadBalancerIngress { ip, proxied }).collect(),
                source_ranges: ranges.into_iter().map(|(v4, family)| range(v4, family)).collect(),
                internal_policy: policies.0,
                external_policy: policies.1,
                other_proxy,
                client_ip_affinity: sticky.then_some(Duration::from_secs(60)),
                ..service(name, &cluster_ip)
            }
        },
    )
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    const PLACES: [&str; 6] = [
        "10.244.0.2@node1",
        "10.244.0.3@node1",
        "10.244.1.2@node2",
        "10.244.1.3@node2",
        "10.244.2.2@node3",
        "172.25.2.254",
    ];
    let hints = |names: &'static [&'static str]| vec(select(names).prop_map(Into::into), 0..2);
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    (select(PLACES.to_vec()), conditions, hints(&["zone-a", "zone-b"]), hints(&["node1", "node2"])).prop_map(
        move |(place, (ready, serving, terminating), hint_zones, hint_nodes)| {
            let built = endpoint(place);
            let address = address(&built.address.to_string(), family);
            Endpoint { address, ready, serving, terminating, hint_zones, hint_nodes, ..built }
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (select(vec!["a", "b", ""]), select(PROTOCOLS.to_vec()), select(vec![8080, 8081]));
    let port = port.prop_map(|(name, protocol, port)| EndpointPort { name: name.into(), protocol, port });
    let names = (select(vec!["a", "b", "c", "d"]), 0..3_u8);
    (names, family(), proptest::bool::weighted(0.1)).prop_flat_map(move |((service, number), family, headless)| {
        (vec(port.clone(), 0..4), vec(any_endpoint(family), 0..6)).prop_map(move |(ports, mut endpoints)| {
            // Of one endpoint twice with different conditions nobody says which counts.
            endpoints.sort_by_key(|endpoint| endpoint.address);
            endpoints.dedup_by_key(|endpoint| endpoint.address);
            EndpointSlice {
                name: ObjectName::new("default", format!("{service}-{number}")),
                service: service.into(),
                family,
                headless,
                ports,
                endpoints,
            }
        })
    })
}

fn any_world() -> impl Strategy<Value = World> {
    let pods = select(vec![Pods::Ranges(pod_ranges()), Pods::Unknown, Pods::InterfacePrefix("pod-")]);
    let objects = (vec(any_service(), 0..5), vec(any_slice(), 0..6));
    (objects, pods, any::<bool>()).prop_map(|((mut services, mut slices), pods, masquerade_all)| {
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services.dedup_by(|a, b| a.name == b.name);
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        // An endpoint in two slices counts as the one that is more able to serve; only then does the oracle say the same.
        slices.dedup_by(|a, b| a.service == b.service && a.family == b.family || a.name == b.name);
        World { services, slices, pods, masquerade_all, ..empty() }
    })
}

/// Every packet that could be of interest.
fn packets() -> Vec<Packet> {
    let cluster_ips = (0..6).map(|number| format!("10.96.0.{number}"));
    let to_address = cluster_ips.chain(EXTERNAL.map(str::to_owned)).flat_map(|v4| PORTS.map(|port| (v4.clone(), port)));
    let to_node = [NODE, NODE_INNER].iter().flat_map(|v4| NODE_PORTS.map(|port| ((*v4).to_owned(), port)));
    let to: Vec<_> = to_address.chain(to_node).collect();
    let mut packets = Vec::new();
    for (family, protocol) in FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol))) {
        for from in [POD_A, POD_B, NODE, OUTSIDE] {
            packets.extend(to.iter().map(|(v4, port)| Packet {
                from: address(from, family),
                to: SocketAddr::new(address(v4, family), *port),
                protocol,
            }));
        }
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_of_any_world_is_what_the_oracle_says(world in any_world()) {
        let mut literal = Literal::default();
        literal.apply(planned(&world));
        for packet in packets() {
            prop_assert_eq!(literal.outcome(&world, &packet), expected(&world, &packet), "{:?}", packet);
        }
    }

    #[test]
    fn every_road_leads_to_the_same_plan(states in vec(any_world(), 1..5)) {
        // One node, so one way of masquerading.
        let states: Vec<_> = states.into_iter().map(|world| World { masquerade_all: false, ..world }).collect();
        let mut direct = Literal::default();
        direct.apply(planned(states.last().unwrap_or(&empty())));
        for (road, states) in replay::roads(&states, &empty()) {
            let (mut tracker, mut literal) = (tracker(&empty()), Literal::default());
            for state in states {
                tracker.set_services(state.services);
                tracker.set_slices(state.slices);
                literal.apply(tracker.take_changes().unwrap_or_default());
            }
            prop_assert_eq!(&literal, &direct, "{}", road);
            let mut anew = Literal::default();
            anew.apply(tracker.take_all().unwrap_or_default());
            prop_assert_eq!(&anew, &direct, "{}, all at once", road);
        }
    }
}
