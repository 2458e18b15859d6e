//! `podwire-cni`: every CNI plugin in one program, called by the name of the plugin wanted.

use std::{
    env,
    io::{Read, Write},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    let name = env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy();
    let mut stdin = Vec::new();
    // Without CNI_COMMAND a person is at the keyboard: say what this is instead of waiting for input.
    if env::var_os("CNI_COMMAND").is_some()
        && let Err(error) = std::io::stdin().read_to_end(&mut stdin)
    {
        eprintln!("{name}: cannot read standard input: {error}");
    }
    let output = podwire_cni::run(&name, &|variable| env::var(variable).ok(), &stdin);
    let written = std::io::stdout().write_all(output.stdout.as_bytes());
    if output.success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
