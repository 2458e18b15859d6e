//! The masquerade rules on the real kernel: what `nft` says of them, and what happens to packets.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, Net, able};
use podwire_kernel::nftables::{Kernel, Nftables};
use podwire_overlay::masquerade::{self, Options};

const ALL: Options = Options { masquerade: true, fully_random: true, forward: true };

fn program(net: &Net, subnet: &str, options: Options) {
    let batch = masquerade::rules("10.244.0.0/16".parse().unwrap(), subnet.parse().unwrap(), options);
    net.inside(|| Kernel::open()?.commit(&batch)).unwrap();
}

#[test]
fn nft_lists_the_seven_rules_of_flannel() {
    if !able() {
        return;
    }
    let net = Net::new();
    // Twice: a restart replaces, it does not append.
    for _ in 0..2 {
        program(&net, "10.244.1.0/24", ALL);
    }
    let expected = r#"
table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 accept comment "flanneld forward"
		ip daddr 10.244.0.0/16 accept comment "flanneld forward"
	}
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld masq"
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return comment "flanneld masq"
		ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return comment "flanneld masq"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return comment "flanneld masq"
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld masq"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random comment "flanneld masq"
	}
}"#;
    let lines = |text: &str| {
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(lines(&net.run("nft list ruleset")), lines(expected));

    program(&net, "10.244.1.0/24", Options { masquerade: false, fully_random: false, forward: false });
    assert!(!net.run("nft list ruleset").contains("chain"));
}

#[test]
fn sources_are_translated_as_by_flannel_and_no_others() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join();
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    for node in &cluster.nodes {
        program(&node.net, &node.site().subnet.to_string(), ALL);
    }
    let client_address = [172, 25, 2, 250].into();
    // From a pod to the outside, and to another node: the node's address.
    assert_eq!(first.pod.source_seen_by(&cluster.client, client_address), first.address());
    assert_eq!(first.pod.source_seen_by(&second.net, second.address()), first.address());
    // From pod to pod, on this node (by way of its bridge address) and across: untouched.
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    assert_eq!(second.pod.source_seen_by(&first.pod, first.pod_address()), second.pod_address());
    // From outside to a pod of the node that it came by: untouched.
    cluster.client.run("ip route add 10.244.0.0/16 via 172.25.2.1");
    assert_eq!(cluster.client.source_seen_by(&first.pod, first.pod_address()), client_address);
    // From outside to a pod of another node: translated, so that the answer comes back the same way.
    let seen = cluster.client.source_seen_by(&second.pod, second.pod_address());
    assert_eq!(seen.to_string(), "10.244.0.0");
    // What kube-proxy marked is kube-proxy's to translate.
    first.net.run("nft add table ip test");
    first.net.run("nft add chain ip test prerouting { type filter hook prerouting priority 0 ; }");
    first.net.run("nft add rule ip test prerouting meta mark set meta mark or 0x4000");
    assert_eq!(first.pod.source_seen_by(&cluster.client, client_address), first.pod_address());
}
