//! The seed's second chapter: the ways to carry a Service, changed on a running cluster as the seed does it.

use anyhow::Result;

use super::{
    scenes::{balance, rolled_out, wait},
    stage::Stage,
};

/// The seed's own command.
pub(super) const DELETE_PODS: &str =
    r#"kubectl get pod -n kube-system | grep kube-proxy | awk '{system("kubectl delete pod "$1" -n kube-system")}'"#;
const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// Changes the mode under a client that never stops asking, and looks at what each mode leaves in the kernel.
pub fn play(stage: &mut Stage) -> Result<()> {
    stage.title("Four ways to carry a Service, changed while a client asks without pause");
    let address = stage.ask("kubectl get svc myservice -o jsonpath='{.spec.clusterIP}'")?;
    let port = stage.ask("kubectl get svc myservice -o jsonpath='{.spec.ports[0].nodePort}'")?;
    let asking = format!("podwire lab exec client -- sh -s http://172.25.2.1:{port}/ < examples/ask.sh");
    let client = stage.start(&asking)?;
    for (mode, look) in
        [("iptables", iptables as fn(&mut Stage, &str)), ("userspace", userspace), ("nftables", nftables)]
    {
        edit(stage, mode);
        carried_by(stage, mode)?;
        look(stage, &address);
        balance(stage, "node1", &format!("http://{address}/hostname.html"), 3);
    }
    stage.ask("podwire lab exec client -- touch /tmp/stop")?;
    let counts = stage.finish(client)?;
    stage.check("not one request failed", counts.contains(" answered, 0 failed") && !counts.starts_with("0 "));
    restart(stage, &address)
}

/// The seed's own procedure: edit, then delete the pods. Here for a mode that this kernel may not have.
fn restart(stage: &mut Stage, address: &str) -> Result<()> {
    stage.title("mode: \"ipvs\", by the seed's own commands");
    edit(stage, "ipvs");
    stage.show(DELETE_PODS).prints("the seed's awk deletes the pods", "deleted");
    stage
        .show("kubectl rollout status -n kube-system daemonset/kube-proxy --timeout=60s")
        .prints("the DaemonSet makes new ones", "successfully rolled out");
    let mode = "podwire lab exec node1 -- curl -s 127.0.0.1:10249/proxyMode";
    wait(stage, mode)?;
    if stage.ask(mode)? == "ipvs" {
        stage
            .show("podwire lab exec node1 -- ipvsadm -ln")
            .prints("the Service is a virtual server with round robin", &format!("TCP  {address}:80 rr"));
    } else {
        stage.say("this kernel has no ip_vs, so kube-proxy falls back to iptables and says so");
        stage.show(mode).prints("the mode that carries", "iptables");
        stage
            .show("kubectl get events -A --field-selector=involvedObject.kind=Node")
            .prints("an Event on the Node says why", "ip_vs");
    }
    balance(stage, "node1", &format!("http://{address}/hostname.html"), 3);
    edit(stage, "nftables");
    carried_by(stage, "nftables")?;
    rolled_out(stage);
    Ok(())
}

/// `kubectl edit` with an editor that changes the line.
pub(super) fn edit(stage: &mut Stage, mode: &str) {
    let editor = format!(r#"KUBE_EDITOR='sed -i "s/mode: .*/mode: {mode}/"'"#);
    stage
        .show(&format!("{editor} kubectl edit cm kube-proxy -n kube-system"))
        .prints(&format!("the ConfigMap says mode: {mode}"), "configmap/kube-proxy edited");
}

fn carried_by(stage: &mut Stage, mode: &str) -> Result<()> {
    for node in NODES {
        wait(stage, &format!("podwire lab exec {node} -- curl -sf 127.0.0.1:10249/proxyMode | grep -x {mode}"))?;
    }
    stage.check(&format!("every node carries Services by {mode}, without a restart"), true);
    Ok(())
}

fn iptables(stage: &mut Stage, address: &str) {
    let rules = "podwire lab exec node1 -- iptables-save -t nat | grep myservice";
    stage.show(rules).holds("KUBE-SERVICES, KUBE-SVC-…, KUBE-SEP-…, a random choice", |text| {
        [address, "KUBE-SVC-", "KUBE-SEP-", "--mode random"].iter().all(|needle| text.contains(needle))
    });
}

fn userspace(stage: &mut Stage, address: &str) {
    let rules = "podwire lab exec node1 -- iptables-save -t nat | grep myservice";
    stage
        .show(rules)
        .holds("the address is redirected to a local port", |text| text.contains(address) && text.contains("REDIRECT"));
    stage.show("podwire lab exec node1 -- ss -ltn").prints("where the proxy listens", "LISTEN");
}

fn nftables(stage: &mut Stage, address: &str) {
    stage
        .show("podwire lab exec node1 -- nft list map ip podwire services")
        .prints("the Service is an element of a map", address);
}
