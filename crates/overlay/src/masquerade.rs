//! flannel's masquerade and forward rules, as nftables.
//!
//! Table and chain names are those of flannel's nftables mode (`flannel-ipv4`/`flannel-ipv6`, `postrtg`, `forward`).
//! The six rules of `postrtg` are what flannel's iptables mode has in `FLANNEL-POSTRTG` (the seventh is the jump there,
//! which a base chain does not need). flannel's nftables mode differs in the fourth (`saddr != POD-RANGE daddr CLUSTER
//! return`), which keeps the last rule from ever matching; that is not repeated here.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podwire_kernel::nftables::{
    Batch, Chain, ChainKind, Family as TableFamily, Hook, Is, Rule, Table, nat_flags, priority,
};
use podwire_model::Family;

/// The mark by which kube-proxy asks for masquerading: it does so itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

const POSTRTG: &str = "postrtg";
const FORWARD: &str = "forward";
const MASQ_COMMENT: &str = "flanneld masq";
const FORWARD_COMMENT: &str = "flanneld forward";

/// Which rules to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// `--ip-masq`: translate the source of what leaves the cluster's network.
    pub masquerade: bool,
    /// Pick source ports at random (off with `--ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// `--iptables-forward-rules`: accept what is forwarded from and to pods.
    pub forward: bool,
}

/// The table that holds all rules of a family. Nothing else lives there: replacing or deleting it is all it takes to
/// clean up.
pub fn table(family: Family) -> Table {
    match family {
        Family::V4 => Table::new(TableFamily::Ip, "flannel-ipv4"),
        Family::V6 => Table::new(TableFamily::Ip6, "flannel-ipv6"),
    }
}

/// One transaction that makes the table exactly this, whatever was there before. `network` is the pod range of the
/// cluster, `subnet` that of this node. Established connections keep their translation.
pub fn rules(network: IpNet, subnet: IpNet, options: Options) -> Batch {
    let family = Family::of(&network.addr());
    let table = table(family);
    let mut batch = Batch::new();
    batch.replace_table(&table, Some(&format!("rules for {}", table.name)));
    if options.forward {
        // Never a drop policy here: it would cut the node itself off.
        batch.add_chain(&table, Chain::base(FORWARD, ChainKind::Filter, Hook::Forward, priority::FILTER));
        let rule = || Rule::new(family).comment(FORWARD_COMMENT);
        batch.add_rule(&table, FORWARD, rule().source(Is::Equal, network).accept());
        batch.add_rule(&table, FORWARD, rule().destination(Is::Equal, network).accept());
    }
    if options.masquerade {
        batch.add_chain(&table, Chain::base(POSTRTG, ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
        for rule in postrouting(network, subnet, options.fully_random) {
            batch.add_rule(&table, POSTRTG, rule.comment(MASQ_COMMENT));
        }
    }
    batch
}

/// The rules of `FLANNEL-POSTRTG`, in order; the first that matches decides.
fn postrouting(cluster: IpNet, pods: IpNet, fully_random: bool) -> [Rule; 6] {
    use Is::{Equal, Not};
    let family = Family::of(&cluster.addr());
    let flags = if fully_random { nat_flags::FULLY_RANDOM } else { 0 };
    let rule = || Rule::new(family);
    [
        // kube-proxy translates these; twice is once too often on some kernels.
        rule().mark(Equal, KUBE_PROXY_MARK, KUBE_PROXY_MARK).return_(),
        // Within the overlay a pod sees the other's own address.
        rule().source(Equal, pods).destination(Equal, cluster).return_(),
        rule().source(Equal, cluster).destination(Equal, pods).return_(),
        // From outside to a pod of this node, NodePorts with externalTrafficPolicy Local for example: the source stays.
        rule().source(Not, cluster).destination(Equal, pods).return_(),
        // From a pod to the outside.
        rule().source(Equal, cluster).destination(Not, multicast(family)).masquerade(flags),
        // From outside to a pod of another node: the answer must come back this way.
        rule().source(Not, cluster).destination(Equal, cluster).masquerade(flags),
    ]
}

fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert([224, 0, 0, 0].into(), 4).into(),
        Family::V6 => Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8).into(),
    }
}
