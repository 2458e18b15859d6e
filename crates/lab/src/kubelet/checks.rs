//! The probes and lifecycle hooks of a running container.

use std::{net::IpAddr, ops::ControlFlow, time::Duration};

use k8s_openapi::api::core::v1::{LifecycleHandler, Probe};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};

use super::{
    events::Severity,
    image::Program,
    probe::{Check, Schedule, Tally},
    process::{self, CommandLine},
    supervise::Supervisor,
};
use crate::container::Exec;

/// Between attempts to find out whether the built-in web app listens.
const LISTEN_RETRY: Duration = Duration::from_millis(2);
/// The first pause between attempts of a probe that has never succeeded; it doubles up to a second. Such attempts
/// between the counted ones can only do good: their failures do not count.
const EAGER: Duration = Duration::from_millis(50);

/// The probes and hooks of a running container.
pub struct Checks<'a> {
    /// Its supervisor.
    pub of: &'a Supervisor<'a>,
    /// Its first process.
    pub pid: u32,
    /// Its environment.
    pub env: &'a [(String, String)],
}

impl Checks<'_> {
    /// Keeps `started` and `ready` up to date; ends when the container has to be killed, with the event's message.
    pub async fn until_unhealthy(&self, program: &Program) -> String {
        let (of, container) = (self.of, self.of.container);
        if of.is_init {
            return std::future::pending().await;
        }
        let name = &container.name;
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
            && let Err(error) = self.hook(hook).await
        {
            of.event(Severity::Warning, "FailedPostStartHook", format!("PostStartHook failed: {error}"));
            return "FailedPostStartHook".to_owned();
        }
        if let Some(port) = program.listens_on {
            self.listens(port).await;
        }
        if let Some(probe) = &container.startup_probe {
            let mut passed = false;
            self.probe(probe, "Startup", |ok| {
                passed = ok;
                ControlFlow::Break(())
            })
            .await;
            if !passed {
                return format!("Container {name} failed startup probe, will be restarted");
            }
        }
        of.update(|r| {
            r.started = true;
            r.ready = container.readiness_probe.is_none();
        });
        let readiness = async {
            if let Some(probe) = &container.readiness_probe {
                self.probe(probe, "Readiness", |ok| {
                    of.update(|r| r.ready = ok);
                    ControlFlow::Continue(())
                })
                .await;
            }
            std::future::pending::<()>().await;
        };
        let liveness =
            async {
                match &container.liveness_probe {
                    Some(probe) => {
                        self.probe(probe, "Liveness", |ok| {
                            if ok { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                        })
                        .await
                    }
                    None => std::future::pending().await,
                }
            };
        tokio::select! {
            () = readiness => {}
            () = liveness => {}
        }
        format!("Container {name} failed liveness probe, will be restarted")
    }

    /// Waits until something accepts connections on the pod's `port`.
    async fn listens(&self, port: u16) {
        let ip = self.pod_ip().parse::<IpAddr>();
        while let Ok(ip) = ip {
            match tokio::time::timeout(Duration::from_secs(1), TcpStream::connect((ip, port))).await {
                Ok(Ok(_)) => return,
                _ => sleep(LISTEN_RETRY).await,
            }
        }
    }

    /// Probes until `verdict`, which is told whenever a threshold is reached, has heard enough.
    async fn probe(&self, probe: &Probe, kind: &str, mut verdict: impl FnMut(bool) -> ControlFlow<()>) {
        let schedule = Schedule::of(probe);
        let check = Check::of(probe, self.of.container, self.pod_ip());
        let (mut tally, mut ever, eager) = (Tally::default(), false, kind != "Liveness");
        sleep(schedule.delay).await;
        loop {
            let next = Instant::now() + schedule.period;
            let outcome = self.attempt(&check, schedule.timeout).await;
            if let Err(error) = &outcome {
                self.of.event(Severity::Warning, "Unhealthy", format!("{kind} probe failed: {error}"));
            }
            if tally.record(outcome.is_ok(), &schedule).is_some_and(|ok| verdict(ok).is_break()) {
                return;
            }
            ever |= outcome.is_ok();
            let mut pause = EAGER;
            while eager && !ever && Instant::now() + pause < next {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
                ever = self.attempt(&check, schedule.timeout).await.is_ok();
                if ever && tally.record(true, &schedule).is_some_and(|ok| verdict(ok).is_break()) {
                    return;
                }
            }
            sleep_until(next).await;
        }
    }

    async fn attempt(&self, check: &Result<Check, String>, limit: Duration) -> Result<(), String> {
        match check {
            Err(error) => Err(error.clone()),
            Ok(Check::Exec(argv)) => self.command(argv.clone(), limit).await,
            Ok(check) => check.attempt(limit).await,
        }
    }

    /// Runs a lifecycle hook to its end.
    pub async fn hook(&self, hook: &LifecycleHandler) -> Result<(), String> {
        const LONG: Duration = Duration::from_secs(3600);
        if let Some(exec) = &hook.exec {
            self.command(exec.command.clone().unwrap_or_default(), LONG).await
        } else if let Some(http) = &hook.http_get {
            Check::http(http, self.of.container, self.pod_ip())?.attempt(LONG).await
        } else if let Some(pause) = &hook.sleep {
            sleep(Duration::from_secs(u64::try_from(pause.seconds).unwrap_or(0))).await;
            Ok(())
        } else {
            Err("only exec, httpGet and sleep are supported".to_owned())
        }
    }

    async fn command(&self, argv: Vec<String>, limit: Duration) -> Result<(), String> {
        let spec = Exec { pid: self.pid, tty: false, identity: self.of.identity() };
        let line = CommandLine { argv, env: self.env.to_vec() };
        match process::run_to_end(spec, &line, limit).await? {
            (0, _) => Ok(()),
            (code, output) if output.is_empty() => Err(format!("command exited with {code}")),
            (_, output) => Err(output),
        }
    }

    fn pod_ip(&self) -> &str {
        self.of.prepared.sandbox.ips.first().map_or("", String::as_str)
    }
}
