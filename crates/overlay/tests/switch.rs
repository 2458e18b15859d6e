//! Going over from one backend to another under traffic, node by node.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, able};
use std::{process::Stdio, thread::sleep, time::Duration};

use podwire_kernel::sysctl::{ProcSys, Sysctl};
use podwire_overlay::Overlay;

const CONFS: [&str; 4] = [
    r#"{"Type": "vxlan"}"#,
    r#"{"Type": "host-gw"}"#,
    r#"{"Type": "vxlan", "DirectRouting": true}"#,
    r#"{"Type": "vxlan", "VNI": 2}"#,
];
/// Between two packets of the pings that watch.
const BEAT: Duration = Duration::from_millis(10);
/// How long a node's lease takes to the others, here.
const API: Duration = Duration::from_millis(50);
/// Pings in one run.
const COUNT: u32 = 120;

fn net_conf(backend: &str) -> String {
    format!(r#"{{"Network": "10.244.0.0/16", "Backend": {backend}}}"#)
}

/// Every node goes over, one after the other; the others hear of it after a while.
fn go_over(cluster: &Cluster, overlays: &mut [Overlay], to: &str) {
    for n in 0..overlays.len() {
        let apply = |overlay: &mut Overlay, n: usize| {
            let outcome = overlay.apply(&mut cluster.nodes[n].net.routes()).unwrap();
            assert!(outcome.errors.is_empty() && outcome.refused.is_empty(), "{outcome:?}");
        };
        overlays[n].switch(cluster.nodes[n].backend(&net_conf(to))).unwrap();
        apply(&mut overlays[n], n);
        sleep(API);
        let lease = overlays[n].lease();
        for (other, overlay) in overlays.iter_mut().enumerate().filter(|(other, _)| *other != n) {
            // Refused by those that have not gone over, which keep what they have.
            let _ = overlay.set_peer(&lease);
            apply(overlay, other);
        }
        sleep(API);
    }
    for (n, overlay) in overlays.iter_mut().enumerate() {
        overlay.release();
        assert!(overlay.apply(&mut cluster.nodes[n].net.routes()).unwrap().errors.is_empty());
    }
}

#[test]
fn hardly_a_packet_is_lost_though_nodes_go_over_one_by_one() {
    if !able() {
        return;
    }
    let every = [CONFS[1], CONFS[0], CONFS[2], CONFS[1], CONFS[3], CONFS[0]];
    for (strict, changes) in [("0", &every[..]), ("1", &every[..3])] {
        let cluster = Cluster::new(3);
        for node in &cluster.nodes {
            // With 1 the kernel drops what does not come by the way that an answer would take.
            for device in ["all", "eth0"] {
                node.net.inside(|| ProcSys.ensure(&format!("net/ipv4/conf/{device}/rp_filter"), strict)).unwrap();
            }
        }
        let mut overlays = cluster.join_with(&net_conf(CONFS[0]));
        for to in changes {
            let pairs = [(0, 1), (1, 2), (2, 0)];
            let pings = pairs.map(|(from, to)| {
                let address = cluster.nodes[to].pod_address();
                let line = format!("ping -q -i {} -c {COUNT} -W 1 {address}", BEAT.as_secs_f64());
                let pod = &cluster.nodes[from].pod;
                pod.inside(|| common::command(&line).stdout(Stdio::piped()).spawn().unwrap())
            });
            go_over(&cluster, &mut overlays, to);
            for ping in pings {
                let printed = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
                let received = printed.split(", ").find_map(|part| part.strip_suffix(" received")?.parse::<u32>().ok());
                let lost = BEAT * (COUNT - received.unwrap());
                println!("to {to}, rp_filter {strict}: lost for {lost:?}");
                assert!(lost < Duration::from_secs(1), "to {to}, rp_filter {strict}: {printed}");
            }
            let links = cluster.nodes[0].net.run("ip -br link show type vxlan");
            let devices = links.lines().filter(|line| line.starts_with("flannel")).count();
            assert_eq!(devices, usize::from(*to != CONFS[1]), "what is left after going over to {to}: {links}");
        }
    }
}
