//! What DNS says about pods, and how soon.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::Child,
    sync::mpsc::{self, Receiver},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use super::{
    scenes::{SERVICE_NAME, in_pod, names_follow_pods, rolled_out, wait},
    stage::Stage,
};

const ZONE: &str = "svc.cluster.local";

/// Names of a headless Service's pods: by host name, by port, by address.
pub fn of_pods(stage: &mut Stage, dns: &str) -> Result<()> {
    stage.title("Names of single pods: hostname and subdomain, SRV, PTR");
    stage.show("kubectl apply -f examples/names.yml").succeeds("a headless Service db, and a pod with a name in it");
    stage.show("kubectl wait --for=condition=Ready pod/primary --timeout=30s").succeeds("the pod is Ready");
    let address = stage.ask("kubectl get pod primary -o jsonpath='{.status.podIP}'")?;
    let host = format!("db-0.db.default.{ZONE}");
    let dig = |question: &str| format!("podwire lab exec node1 -- dig +short {question} @{dns}");
    wait(stage, &format!("{} | grep -x {address}", dig(&host)))?;
    stage.show(&dig(&host)).prints("the pod's own name", &address);
    let srv = dig(&format!("SRV _http._tcp.db.default.{ZONE}"));
    stage.show(&srv).prints("SRV: port and name of each endpoint", &format!("80 {host}."));
    stage.show(&dig(&format!("-x {address}"))).prints("PTR: back from the address to the name", &format!("{host}."));
    let hostname = in_pod(stage, "primary", "hostname -f");
    stage.show(&hostname).prints("and the pod calls itself so", &host);
    stage.show("kubectl delete -f examples/names.yml --wait=true").succeeds("gone again");
    Ok(())
}

/// How soon a pod that is Ready is in the answers: more pods, and other pods.
pub fn follow_at_once(stage: &mut Stage, dns: &str) -> Result<()> {
    stage.title("From Ready to the first answer");
    stage.say("a client on node1 asks without pause, kubectl --watch tells when a pod is Ready");
    measured(stage, dns, "kubectl scale deployment/demo2 --replicas=6", (3, 6))?;
    stage.show("kubectl scale deployment/demo2 --replicas=3").succeeds("and back to 3");
    rolled_out(stage);
    names_follow_pods(stage, dns, 3);
    stage.say("every pod is replaced by another");
    measured(stage, dns, "kubectl rollout restart deployment/demo2", (3, 3))
}

/// Makes a change that brings `new` pods and leaves `all`, and tells how long each took.
fn measured(stage: &mut Stage, dns: &str, change: &str, (new, all): (usize, usize)) -> Result<()> {
    let asking = format!("exec podwire lab exec node1 -- sh -s {SERVICE_NAME} {dns} < examples/resolve.sh");
    let asking = Lines::of(stage.start(&asking)?)?;
    let begin = asking.lines.recv().context("the client that asks says nothing")?.1;
    let watching = "exec kubectl get pods -l app=myapp --watch -o \
         jsonpath='{.status.podIP} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}'";
    let watching = Lines::of(stage.start(watching)?)?;
    stage.show(change).succeeds("the change is accepted");
    rolled_out(stage);
    names_follow_pods(stage, dns, all);
    stage.ask("podwire lab exec node1 -- touch /tmp/stop")?;
    let (ready, answers) = (watching.end(true), asking.end(false));

    let mut times = BTreeMap::new();
    for (at, line) in ready {
        let Some(address) = line.strip_suffix(" True").filter(|address| !begin.contains(&format!("{address} "))) else {
            continue;
        };
        // The answer's own time: it waited in a pipe.
        let answer = answers.iter().find(|(_, line)| line.contains(&format!(" {address} ")));
        let answered = answer.and_then(|(_, line)| line.split(' ').next()?.parse::<f64>().ok());
        times.entry(address.to_owned()).or_insert(answered.map(|answered| ((answered - at) * 1e3).max(0.0)));
    }
    let told: Vec<_> = times.values().flatten().map(|time| format!("{time:.0}")).collect();
    let what = format!("{} ms from Ready to the first answer, for each new pod", told.join(", "));
    stage.check(&what, told.len() == new);
    Ok(())
}

/// A command's lines as they come, each with the time in seconds since 1970.
struct Lines {
    child: Child,
    lines: Receiver<(f64, String)>,
}

impl Lines {
    fn of(mut child: Child) -> Result<Self> {
        let output = BufReader::new(child.stdout.take().context("no output to read")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                if sender.send((now.as_secs_f64(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// All lines that were not taken yet, once the command has ended: by itself, or killed.
    fn end(mut self, kill: bool) -> Vec<(f64, String)> {
        if kill {
            // It has nothing to lose; that it ended before is as good.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        self.lines.iter().collect()
    }
}
