//! Shows commands, runs them, judges what came back.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Lines of a command's output that are shown.
const SHOWN_LINES: usize = 24;

/// Where the scenes are played: one lab, one search path, one count of failures.
pub struct Stage {
    lab: String,
    binaries: PathBuf,
    path: String,
    kubeconfig: Option<String>,
    colour: bool,
    quiet: bool,
    passed: usize,
    failed: Vec<String>,
}

impl Stage {
    /// A stage for the lab `lab` with the executables in `binaries` first on the search path.
    pub fn new(lab: &str, binaries: PathBuf) -> Self {
        let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { lab: lab.into(), binaries, path, kubeconfig: None, colour, quiet: false, passed: 0, failed: Vec::new() }
    }

    /// The folder of the executables.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// From now on prints only what fails.
    pub fn quiet(&mut self) {
        self.quiet = true;
    }

    /// Begins a scene.
    pub fn title(&self, title: &str) {
        if !self.quiet {
            println!("\n{}", self.paint("1", &format!("── {title} ──")));
        }
    }

    /// Explains what comes next, in one line.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            println!("{}", self.paint("2", &format!("# {text}")));
        }
    }

    /// Points kubectl at the lab.
    pub fn use_kubeconfig(&mut self) {
        self.kubeconfig = self.run("podwire lab kubeconfig").ok().map(|ran| ran.text.trim().to_owned());
        if !self.quiet {
            println!("{} export KUBECONFIG=$(podwire lab kubeconfig)", self.paint("36", "$"));
        }
    }

    /// Plays a scene in another lab, which runs.
    pub fn with_lab<T>(&mut self, lab: &str, scene: impl FnOnce(&mut Self) -> T) -> T {
        let before = (std::mem::replace(&mut self.lab, lab.to_owned()), self.kubeconfig.take());
        if !self.quiet {
            println!("{} export PODWIRE_LAB={lab}", self.paint("36", "$"));
        }
        self.use_kubeconfig();
        let played = scene(self);
        (self.lab, self.kubeconfig) = before;
        played
    }

    /// Shows and runs a command; judge the answer with the methods of [`Shown`].
    pub fn show(&mut self, command: &str) -> Shown<'_> {
        if !self.quiet {
            println!("{} {command}", self.paint("36", "$"));
        }
        let ran = self.run(command).unwrap_or_else(|error| Ran {
            ok: false,
            text: format!("{error:#}"),
            took: Duration::ZERO,
        });
        if !self.quiet {
            print_some(&ran.text);
        }
        Shown { stage: self, command: command.to_owned(), ran }
    }

    /// What a command prints, unseen: for values that later commands need.
    pub fn ask(&self, command: &str) -> Result<String> {
        let ran = self.run(command)?;
        if !ran.ok {
            bail!("{command}: {}", ran.text.trim());
        }
        Ok(ran.text.trim().to_owned())
    }

    /// Starts a command that runs beside the next ones; its output is collected by [`Stage::finish`].
    pub fn start(&self, command: &str) -> Result<Child> {
        if !self.quiet {
            println!("{} {command} &", self.paint("36", "$"));
        }
        self.command(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| command.to_owned())
    }

    /// Waits for a command that [`Stage::start`] began, and shows what it printed.
    pub fn finish(&self, child: Child) -> Result<String> {
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if !self.quiet {
            print_some(&text);
        }
        Ok(text)
    }

    /// Records one result.
    pub fn check(&mut self, what: &str, ok: bool) {
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(what.to_owned());
        }
        if ok && !self.quiet {
            println!("{} {what}", self.paint("32", "✓"));
        } else if !ok {
            println!("{} {what}", self.paint("31", "✗"));
        }
        // In a pipe, whoever reads along sees each result when it is there. A reader that left is no failure of ours.
        let _ = std::io::stdout().flush();
    }

    /// The sum: an error if anything failed.
    pub fn verdict(&self) -> Result<()> {
        if !self.quiet {
            println!("\n{} passed, {} failed", self.passed, self.failed.len());
        }
        if self.failed.is_empty() { Ok(()) } else { bail!("failed: {}", self.failed.join("; ")) }
    }

    fn run(&self, command: &str) -> Result<Ran> {
        let begin = Instant::now();
        let output = self.command(command).output().with_context(|| command.to_owned())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok(Ran { ok: output.status.success(), text, took: begin.elapsed() })
    }

    fn command(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(shell::root()).stdin(Stdio::null());
        shell.env("PATH", &self.path).env("PODWIRE_LAB", &self.lab).env_remove("KUBECONFIG");
        if let Some(kubeconfig) = &self.kubeconfig {
            shell.env("KUBECONFIG", kubeconfig);
        }
        shell
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

struct Ran {
    ok: bool,
    text: String,
    took: Duration,
}

/// A command that was shown and run, waiting for judgement.
pub struct Shown<'a> {
    stage: &'a mut Stage,
    command: String,
    ran: Ran,
}

impl Shown<'_> {
    /// The command must exit 0.
    pub fn succeeds(self, what: &str) -> String {
        self.holds(what, |_| true)
    }

    /// The command must exit 0 and print `needle`.
    pub fn prints(self, what: &str, needle: &str) -> String {
        self.holds(what, |text| text.contains(needle))
    }

    /// The command must exit 0 and its output satisfy `test`.
    pub fn holds(self, what: &str, test: impl FnOnce(&str) -> bool) -> String {
        let ok = self.ran.ok && test(&self.ran.text);
        self.judge(what, ok)
    }

    /// The command must fail, with an error that contains `needle`.
    pub fn refuses(self, what: &str, needle: &str) -> String {
        let ok = !self.ran.ok && self.ran.text.contains(needle);
        self.judge(what, ok)
    }

    /// How long it took.
    pub fn took(&self) -> Duration {
        self.ran.took
    }

    fn judge(self, what: &str, ok: bool) -> String {
        if !ok && self.stage.quiet {
            println!("$ {}", self.command);
            print_some(&self.ran.text);
        }
        self.stage.check(what, ok);
        self.ran.text
    }
}

fn print_some(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().take(SHOWN_LINES) {
        println!("  {line}");
    }
    if lines.len() > SHOWN_LINES {
        println!("  … {} more lines", lines.len() - SHOWN_LINES);
    }
}
