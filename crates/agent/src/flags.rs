//! The spelling of flags on a command line.

use std::ffi::OsString;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_dashes_are_understood() {
        let convert = |line: &str| with_double_dashes(line.split(' ').map(OsString::from)).join(" ".as_ref());
        assert_eq!(convert("podwire dns -conf /etc/coredns/Corefile"), "podwire dns --conf /etc/coredns/Corefile");
        assert_eq!(convert("podwire dns --conf x -h -"), "podwire dns --conf x -h -");
        assert_eq!(convert("podwire flanneld -ip-masq -v=2"), "podwire flanneld --ip-masq --v=2");
        assert_eq!(convert("podwire lab -conf"), "podwire lab -conf");
    }
}
