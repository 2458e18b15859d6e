//! The lab's own processes without the agents: what the tests of this crate start instead of `podwire` and `podwire-cni`.

use std::{env, io::Read, path::Path, process::ExitCode};

use clap::Parser;
use podwire_lab::cli::{Hidden, run_hidden};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Hidden,
}

fn main() -> ExitCode {
    let name = env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if env::var_os("CNI_COMMAND").is_some() {
        return cni_plugin(&name);
    }
    run_hidden(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("lab-process: {error}");
        ExitCode::FAILURE
    })
}

fn cni_plugin(name: &str) -> ExitCode {
    let mut stdin = Vec::new();
    if std::io::stdin().read_to_end(&mut stdin).is_err() {
        return ExitCode::FAILURE;
    }
    let output = podwire_cni::run(name, &|variable| env::var(variable).ok(), &stdin);
    print!("{}", output.stdout);
    if output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
