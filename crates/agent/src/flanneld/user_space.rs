//! What of the overlay is not the kernel's: the forwarder of backend udp, and the commands of backend extension.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use podwire_model::IpNet;
use podwire_overlay::{
    backend::udp::forward::{Forwarder, Settings},
    plan::Command,
};
use tokio::{io::AsyncWriteExt, process, sync::mpsc, time::timeout};
use tracing::{error, info};

use super::stack::Stack;

/// How long a command may take. Others wait for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where packets for a range go to; nowhere, when it is nobody's any more.
type Line = (IpNet, Option<SocketAddr>);

/// Runs what the overlay leaves to this program.
pub(super) struct UserSpace {
    forwarder: Option<(Settings, Forwarder)>,
    commands: mpsc::UnboundedSender<Command>,
}

impl UserSpace {
    /// Nothing runs yet. To be called within a runtime.
    pub(super) fn new() -> Self {
        let (commands, queue) = mpsc::unbounded_channel();
        tokio::spawn(run_all(queue));
        Self { forwarder: None, commands }
    }

    /// Has commands run in the background, one after the other.
    pub(super) fn run(&self, commands: Vec<Command>) {
        for command in commands {
            // The task ends only when this does.
            let _ = self.commands.send(command);
        }
    }

    /// Starts, changes or ends the forwarder, as the overlay needs it. `news`: lines of its table that are different, as in
    /// [`podwire_overlay::Outcome::forwards`].
    ///
    /// # Errors
    /// It cannot work: another program listens on its port, or the device is not there.
    pub(super) fn forward(&mut self, stacks: &[Stack], news: &[Line]) -> anyhow::Result<()> {
        let wanted = stacks.iter().find_map(|stack| Some((Settings::of(&stack.overlay)?, &stack.overlay)));
        match (wanted, &self.forwarder) {
            (None, None) => {}
            (None, Some(_)) => {
                self.forwarder = None;
                info!("the forwarder ended");
            }
            (Some((wanted, _)), Some((settings, forwarder))) if wanted == *settings => {
                forwarder.change_table(news);
            }
            (Some((wanted, overlay)), _) => {
                // The one before may listen on the same port.
                self.forwarder = None;
                let forwarder = Forwarder::start(wanted.clone(), overlay.forwards().collect())?;
                info!(settings = ?wanted, "the forwarder carries packets");
                self.forwarder = Some((wanted, forwarder));
            }
        }
        Ok(())
    }
}

async fn run_all(mut queue: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = queue.recv().await {
        match run(&command).await {
            Ok(printed) => info!(command = %command.line, "ran: {}", printed.trim()),
            Err(error) => error!(command = %command.line, "{error:#}"),
        }
    }
}

/// Runs one command to its end; returns what it printed.
///
/// # Errors
/// There is no such program, it failed, or took too long: then it is killed.
pub(super) async fn run(command: &Command) -> anyhow::Result<String> {
    let words = command.words(|name| std::env::var(name).ok());
    let Some((program, arguments)) = words.split_first() else { bail!("the command is empty") };
    let mut child = process::Command::new(program)
        .args(arguments)
        .envs(command.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let input = child.stdin.take();
    let finished = async {
        if let Some(mut stdin) = input {
            // A program need not read it.
            let _ = stdin.write_all(command.input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(PATIENCE, finished).await.with_context(|| format!("not done within {PATIENCE:?}"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        Command { line: line.to_owned(), environment: vec![("SUBNET", "10.244.1.0/24".into())], input: "key".into() }
    }

    #[tokio::test]
    async fn commands_run_with_their_environment_and_input() {
        assert_eq!(run(&command("echo $SUBNET a  b")).await.unwrap(), "10.244.1.0/24 a b\n");
        assert_eq!(run(&command("cat")).await.unwrap(), "key");
        assert!(run(&command("printenv SUBNET")).await.unwrap().starts_with("10.244.1.0/24"));
        assert!(run(&command("false")).await.unwrap_err().to_string().contains("exit status: 1"));
        assert!(run(&command("/no/such/program")).await.unwrap_err().to_string().contains("/no/such/program"));
        assert!(run(&command(" ")).await.is_err());
    }
}
