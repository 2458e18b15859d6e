//! `cargo xtask …`: everything that is done to Podwire rather than by it.

mod bench;
mod demo;
mod layers;
mod setup;
mod shell;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask setup              install what building, testing and the demo need (Debian, root)
cargo xtask demo [--keep]      set up, build, bring a three-node lab up and run the seed's demos on it
cargo xtask test [TIER]        set up and run the tests: unit, netns, lab, vm; all of them without TIER
cargo xtask test vm NAME [ARG…]
                               one test program in the machine with Debian's kernel, with these arguments
cargo xtask vm -- COMMAND…     run a command in that machine
cargo xtask bench [NAME] [--json FILE] [-- ARGUMENTS]
                               set up, measure, print a table; one JSON object a line into FILE;
                               ARGUMENTS are the benchmark's own
cargo xtask layers             check that crates depend on each other only as ARCHITECTURE.md says
cargo xtask tidy               list files and functions that grew large, folders without a README
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["setup"] => setup::run().and_then(|()| vm::prepare()),
        ["demo", rest @ ..] => demo::run(rest),
        ["test", rest @ ..] => test::run(rest),
        ["vm", rest @ ..] => vm::run(rest),
        ["bench", rest @ ..] => bench::run(rest),
        ["layers"] => layers::run(),
        ["tidy"] => tidy::run(),
        [] | ["help" | "-h" | "--help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => Err(anyhow::anyhow!("unknown: {}\n\n{USAGE}", other.join(" "))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
