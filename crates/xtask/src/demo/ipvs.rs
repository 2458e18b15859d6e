//! IPVS mode needs ip_vs, which this machine's kernel may lack: the seed's steps on a lab in the emulated machine of
//! `cargo xtask vm`.

use anyhow::{Context, Result};

use super::{
    modes::{DELETE_PODS, edit},
    scenes::{balance, first_answer, rolled_out, wait},
    stage::Stage,
};
use crate::vm;

const PROXY_MODE: &str = "podwire lab exec node1 -- curl -sf 127.0.0.1:10249/proxyMode";

/// Boots the machine, which plays [`inside`].
pub fn play(stage: &mut Stage) -> Result<()> {
    stage.title("mode: \"ipvs\", in an emulated machine with Debian's own kernel");
    let program = std::env::current_exe().context("where this program is")?;
    let binaries = stage.binaries().to_owned();
    let played = vm::run(&["--", &program.to_string_lossy(), "demo", "--in-machine", &binaries.to_string_lossy()]);
    if let Err(error) = &played {
        stage.say(&format!("{error:#}"));
    }
    stage.check("IPVS mode does in the machine what the seed says", played.is_ok());
    Ok(())
}

/// What is played in the machine: the executables come with the host's files.
pub fn inside(binaries: &str) -> Result<()> {
    let mut stage = Stage::new("ipvs", binaries.into());
    stage.show("uname -sr").succeeds("a kernel of its own");
    stage.show("podwire lab up --nodes 1").succeeds("a lab of one node is up");
    stage.use_kubeconfig();
    stage.show("kubectl apply -f examples/demo-nodeport.yml").succeeds("the seed's Service and its three pods");
    let address = first_answer(&stage)?;
    rolled_out(&mut stage);
    stage.say("the seed's procedure: edit the ConfigMap, delete the pods of kube-proxy");
    edit(&mut stage, "ipvs");
    stage.show(DELETE_PODS).prints("the seed's awk deletes the pod", "deleted");
    wait(&stage, &format!("{PROXY_MODE} | grep -x ipvs"))?;
    look(&mut stage, &address)?;
    repair(&mut stage, &address)?;
    edit(&mut stage, "nftables");
    wait(&stage, &format!("{PROXY_MODE} | grep -x nftables"))?;
    // The mode that takes over comes first, then the other is cleaned up.
    let left = "podwire lab exec node1 -- sh -c 'ipvsadm -Sn; ipset list -name; ip -o link show type dummy'";
    wait(&stage, &format!("! {left} | grep ."))?;
    stage.show(left).holds("IPVS mode has left nothing behind", |text| text.trim().is_empty());
    stage.show("podwire lab down").succeeds("the lab is gone");
    stage.verdict()
}

/// What `ipvsadm` and the others show, and whether traffic flows.
fn look(stage: &mut Stage, address: &str) -> Result<()> {
    let on_node = "podwire lab exec node1 --";
    wait(stage, &format!("{on_node} ipvsadm -Ln -t {address}:80"))?;
    stage.show(&format!("{on_node} ipvsadm -Ln")).holds("a virtual server with round robin over three pods", |text| {
        text.contains(&format!("TCP  {address}:80 rr"))
            && text.matches(":80 ").count() > 3
            && text.contains("Masq    1")
    });
    stage
        .show(&format!("{on_node} ip -d address show kube-ipvs0"))
        .holds("Service addresses are on a dummy link that is down and answers no ARP", |text| {
            text.contains(&format!("inet {address}/32")) && text.contains("NOARP") && text.contains("dummy")
        });
    stage.show(&format!("{on_node} ipset list -name")).prints("what rules ask about is in sets", "KUBE-CLUSTER-IP");
    stage
        .show(&format!("{on_node} iptables-save -t nat | grep -- '-A KUBE'"))
        .holds("a few constant rules, none for a Service", |text| text.contains("KUBE-") && !text.contains(address));
    balance(stage, "node1", &format!("http://{address}/hostname.html"), 3);
    let port = stage.ask("kubectl get svc myservice -o jsonpath='{.spec.ports[0].nodePort}'")?;
    balance(stage, "client", &format!("http://172.25.2.1:{port}/hostname.html"), 3);
    Ok(())
}

/// The seed's promise of IPVS mode: what is deleted by hand comes back.
fn repair(stage: &mut Stage, address: &str) -> Result<()> {
    stage.show("podwire lab exec node1 -- ipvsadm --clear").succeeds("every virtual server is deleted by hand");
    wait(stage, &format!("podwire lab exec node1 -- curl -sf -m 1 http://{address}/"))?;
    stage.show("podwire lab exec node1 -- ipvsadm -Ln").prints("they are back", &format!("TCP  {address}:80 rr"));
    Ok(())
}
