//! The spelling of flags on a command line.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Args, Command};

/// The programs whose originals take flags with one dash, as Go's `flag` package has them.
const SINGLE_DASH: [&str; 2] = ["dns", "flanneld"];

/// Gives such flags their second dash (`-conf` → `--conf`) where the subcommand is one of those programs.
pub fn with_double_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|subcommand| SINGLE_DASH.iter().any(|name| subcommand == name)) {
        for arg in args.iter_mut().skip(2) {
            let single = arg.to_str().and_then(|text| text.strip_prefix('-')).filter(|flag| flag.len() > 1);
            if let Some(flag) = single.filter(|flag| !flag.starts_with('-')) {
                *arg = format!("--{flag}").into();
            }
        }
    }
    args
}

/// Appends `--flag=value` for every flag of `A` that has a variable in the environment and is not on the command line:
/// `--ip-masq` is `FLANNELD_IP_MASQ` with the prefix `FLANNELD`. An empty variable counts as none.
///
/// Source: `SetFlagsFromEnv` of github.com/coreos/pkg/flagutil, which flanneld uses.
pub fn with_environment<A: Args>(
    mut args: Vec<OsString>,
    prefix: &str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<OsString> {
    let command = A::augment_args(Command::new(""));
    let is_there = |name: &str| {
        let flag = |arg: &OsString| arg.to_str()?.strip_prefix("--")?.split('=').next().map(ToOwned::to_owned);
        args.iter().filter_map(flag).any(|given| given == name)
    };
    let from_environment = |arg: &Arg| {
        let name = arg.get_long().filter(|name| !is_there(name))?;
        let value = variable(&format!("{prefix}_{}", name.replace('-', "_").to_uppercase()))?;
        let takes_one = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !value.is_empty();
        let mut flag = OsString::from(format!("--{name}="));
        flag.push(value);
        takes_one.then_some(flag)
    };
    let more: Vec<_> = command.get_arguments().filter_map(from_environment).collect();
    args.extend(more);
    args
}

/// A switch as Go's `strconv.ParseBool` reads it.
///
/// # Errors
/// Anything else.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn single_dashes_are_understood() {
        let convert = |line: &str| with_double_dashes(line.split(' ').map(OsString::from)).join(" ".as_ref());
        assert_eq!(convert("podwire dns -conf /etc/coredns/Corefile"), "podwire dns --conf /etc/coredns/Corefile");
        assert_eq!(convert("podwire dns --conf x -h -"), "podwire dns --conf x -h -");
        assert_eq!(convert("podwire flanneld -ip-masq -v=2"), "podwire flanneld --ip-masq --v=2");
        assert_eq!(convert("podwire lab -conf"), "podwire lab -conf");
    }

    #[derive(Debug, Parser)]
    struct Cli {
        #[arg(long, action = ArgAction::Set, value_parser = go_bool)]
        #[arg(num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
        ip_masq: bool,
        #[arg(long)]
        iface: Vec<String>,
        #[arg(long, default_value_t = 0)]
        healthz_port: u16,
    }

    #[test]
    fn the_environment_stands_for_what_the_command_line_does_not_say() {
        let variables = [("FLANNELD_IP_MASQ", "1"), ("FLANNELD_IFACE", "eth1"), ("FLANNELD_HEALTHZ_PORT", "")];
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let read = |line: &str| {
            let args = line.split(' ').map(OsString::from).collect();
            Cli::parse_from(with_environment::<Cli>(args, "FLANNELD", variable))
        };
        let cli = read("flanneld");
        assert_eq!((cli.ip_masq, cli.iface, cli.healthz_port), (true, vec!["eth1".to_owned()], 0));
        let cli = read("flanneld --ip-masq=false --iface eth0 --healthz-port=8080");
        assert_eq!((cli.ip_masq, cli.iface, cli.healthz_port), (false, vec!["eth0".to_owned()], 8080));
    }

    #[test]
    fn switches_are_spelled_as_in_go() {
        assert_eq!(
            ["1", "T", "true", "0", "False"].map(|text| go_bool(text).unwrap()),
            [true, true, true, false, false]
        );
        assert!(go_bool("yes").is_err());
    }
}
