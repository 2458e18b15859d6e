//! The seed's fifth chapter: what is between pods of different nodes, looked at on the wire, and changed while pods talk.

use std::process::Child;

use anyhow::{Context, Result};

use super::{
    scenes::{capture_settles, in_pod, pod_on, wait},
    stage::Stage,
};

/// The seed's own command.
const DELETE_PODS: &str =
    r#"kubectl get pod -n kube-system | grep flannel | awk '{system("kubectl delete pod "$1" -n kube-system")}'"#;
/// Between two packets of `examples/ping.sh`, in seconds.
const INTERVAL: f64 = 0.05;

/// One way for packets from node to node.
struct Way {
    title: &'static str,
    /// What stands in net-conf.json in the place of `"Type": "vxlan"`.
    backend: &'static str,
    /// Its name in the annotations of nodes.
    kind: &'static str,
    /// What `ip route get` says of the way to a node's pods: `PODS` is their network, `NODE` the node's address.
    route: &'static str,
    /// What tcpdump is to look for at node2.
    filter: &'static str,
    /// What a packet on the wire looks like; `TO` is the pod that is pinged.
    wire: &'static [&'static str],
}

const VXLAN: Way = Way {
    title: "vxlan: the frame travels in UDP, port 8472",
    backend: r#""Type": "vxlan""#,
    kind: "vxlan",
    route: "via PODS dev flannel.1",
    filter: "udp port 8472 and host 172.25.2.1",
    wire: &["172.25.2.1.", "> 172.25.2.2.8472", "> TO: ICMP echo request"],
};
const HOST_GW: Way = Way {
    title: "host-gw: the pod's own packet, by a plain route",
    backend: r#""Type": "host-gw""#,
    kind: "host-gw",
    route: "via NODE dev eth0",
    filter: "icmp[icmptype] = icmp-echo",
    wire: &["> TO: ICMP echo request"],
};
const DIRECT: Way = Way {
    title: "vxlan with Directrouting: all nodes are neighbours, so plain routes again",
    backend: r#""Type": "vxlan", "Directrouting": true"#,
    kind: "vxlan",
    ..HOST_GW
};
const UDP: Way = Way {
    title: "udp: flanneld carries the packet itself, in UDP, port 8285",
    backend: r#""Type": "udp""#,
    kind: "udp",
    route: "dev flannel0",
    filter: "udp port 8285",
    wire: &["172.25.2.1.8285 > 172.25.2.2.8285: UDP"],
};

/// Looks at vxlan, passes through the other backends and comes back, with a pod that pings all the while.
pub fn play(stage: &mut Stage) -> Result<()> {
    stage.title(VXLAN.title);
    look(stage);
    on_the_wire(stage, "node2", &VXLAN)?;
    for (way, restarts) in [(&HOST_GW, true), (&DIRECT, false), (&UDP, false), (&VXLAN, false)] {
        switch(stage, way, restarts)?;
    }
    macvlan(stage)?;
    routed(stage)
}

/// The three entries for each peer, and the rest of what vxlan makes.
fn look(stage: &mut Stage) {
    let node = "podwire lab exec node1 --";
    stage.show(&format!("{node} ip -d link show flannel.1")).prints("the VTEP: VNI 1, port 8472", "vxlan id 1 ");
    stage
        .show(&format!("{node} ip r"))
        .prints("a route for each peer", "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink");
    stage.show(&format!("{node} ip n show dev flannel.1")).prints("a neighbour for each peer", "10.244.1.0 lladdr");
    stage
        .show(&format!("{node} bridge fdb show dev flannel.1"))
        .prints("a forwarding entry for each peer", "dst 172.25.2.2 self permanent");
}

/// A pod of node1 pings one of `to`, and tcpdump looks on there.
fn on_the_wire(stage: &mut Stage, to: &str, way: &Way) -> Result<()> {
    let (from, _) = pod_on(stage, "node1")?;
    let (_, address) = pod_on(stage, to)?;
    let capture =
        stage.start(&format!("podwire lab exec {to} -- timeout 10 tcpdump -i eth0 -nn -c 2 '{}'", way.filter))?;
    capture_settles(stage, to)?;
    let ping = in_pod(stage, &from, &format!("ping -c 3 -i 0.2 {address}"));
    stage.show(&ping).prints(&format!("a pod of node1 pings a pod of {to}"), " 0% packet loss");
    let wire = stage.finish(capture)?;
    let seen = way.wire.iter().all(|what| wire.contains(&what.replace("TO", &address)));
    stage.check("what the wire carries", seen);
    Ok(())
}

/// As the seed does it: edit the ConfigMap; deleting the pods as well is not needed.
fn switch(stage: &mut Stage, way: &Way, restarts: bool) -> Result<()> {
    stage.title(way.title);
    let pinger = Pinger::start(stage)?;
    let backend = way.backend.replace('"', r#"\""#);
    let editor = format!(r#"KUBE_EDITOR='sed -i "s/\"Type\": .*/{backend}/"'"#);
    stage
        .show(&format!("{editor} kubectl -n kube-system edit cm kube-flannel-cfg"))
        .prints(&format!("net-conf.json says {}", way.backend), "configmap/kube-flannel-cfg edited");
    if restarts {
        stage.show(DELETE_PODS).prints("the seed's awk deletes the pods", "deleted");
    }
    for (node, peer) in [(1, 2), (2, 1), (3, 1)] {
        let (pods, address) = (format!("10.244.{}.0", peer - 1), format!("172.25.2.{peer}"));
        let route = way.route.replace("PODS", &pods).replace("NODE", &address);
        wait(stage, &format!("podwire lab exec node{node} -- ip route get {pods} | grep '{route}'"))?;
    }
    let kinds =
        r"kubectl get nodes -o jsonpath='{.items[*].metadata.annotations.flannel\.alpha\.coreos\.com/backend-type}'";
    wait(stage, &format!("{kinds} | grep -x '{0} {0} {0}'", way.kind))?;
    let lost = pinger.stop(stage)?;
    stage.check(&format!("a pod that pings all the while misses {lost:.2} s of it"), lost < 1.0);
    stage.show("podwire lab exec node1 -- ip r").succeeds("the routes");
    on_the_wire(stage, "node2", way)
}

/// A pod of node1 that pings a pod of node2 without pause.
struct Pinger {
    pod: String,
    process: Child,
}

impl Pinger {
    fn start(stage: &Stage) -> Result<Self> {
        let (pod, _) = pod_on(stage, "node1")?;
        let (_, address) = pod_on(stage, "node2")?;
        let process = stage.start(&format!("podwire lab exec pod/{pod} -- sh -s {address} < examples/ping.sh"))?;
        wait(stage, &format!("podwire lab exec pod/{pod} -- test -e /tmp/pinging"))?;
        Ok(Self { pod, process })
    }

    /// For how long packets were lost, in seconds.
    fn stop(self, stage: &Stage) -> Result<f64> {
        stage.ask(&format!("podwire lab exec pod/{} -- touch /tmp/stop", self.pod))?;
        let said = stage.finish(self.process)?;
        let before = |what: &str| -> Option<f64> { said.split(what).next()?.split_whitespace().last()?.parse().ok() };
        let (sent, received) = (before(" packets transmitted"), before(" received"));
        let lost = sent.zip(received).map(|(sent, received)| (sent - received) * INTERVAL);
        lost.with_context(|| format!("ping said: {said}"))
    }
}

/// The seed's second kind of plugin: many containers on one network card.
fn macvlan(stage: &mut Stage) -> Result<()> {
    stage.title("MacVLAN: a pod on the nodes' own network, with a MAC of its own");
    let file = "/etc/cni/net.d/50-lan";
    stage
        .show(&format!(
            "podwire lab exec node1 -- sh -c 'cat > {file}.new && mv {file}.new {file}.conflist' < examples/macvlan.conflist"
        ))
        .succeeds("node1 knows the network lan");
    stage.show("kubectl apply -f examples/macvlan-pod.yml").succeeds("a pod asks for it by annotation");
    stage.show("kubectl wait --for=condition=Ready pod/on-lan --timeout=30s").prints("it runs", "condition met");
    stage
        .show("podwire lab exec pod/on-lan -- ip -d address show net1")
        .prints("net1 is a macvlan", "macvlan mode bridge");
    stage
        .show("podwire lab exec client -- curl -s -m 3 http://172.25.2.200/hostname.html")
        .prints("a machine outside the cluster reaches it directly", "on-lan");
    stage
        .show("podwire lab exec node1 -- ping -c 1 -W 1 172.25.2.200")
        .refuses("its own node does not, by way of the parent: that is macvlan", "100% packet loss");
    stage.show("kubectl delete pod on-lan").succeeds("and it is gone");
    Ok(())
}

/// DirectRouting has something to choose where nodes are on two networks.
fn routed(stage: &mut Stage) -> Result<()> {
    stage.title("Two networks: vxlan to the nodes behind the router, plain routes to neighbours");
    stage.show("podwire lab up --name routed --subnets 2 --backend vxlan-direct").succeeds("node2 is behind a router");
    let played = stage.with_lab("routed", |stage| {
        stage.show("kubectl apply -f examples/demo-clusterip.yml").succeeds("a pod for each node");
        super::scenes::rolled_out(stage);
        let routes = stage.show("podwire lab exec node1 -- ip r");
        routes.holds("node3 by a plain route, node2 by vxlan", |text| {
            text.contains("10.244.2.0/24 via 172.25.2.3 dev eth0")
                && text.contains("10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink")
        });
        on_the_wire(stage, "node3", &HOST_GW)?;
        on_the_wire(
            stage,
            "node2",
            &Way { wire: &["172.25.2.1.", "> 172.25.3.2.8472", "> TO: ICMP echo request"], ..VXLAN },
        )
    });
    stage.show("podwire lab down --name routed").succeeds("that lab is gone");
    played
}
