//! Commands that an administrator wrote into net-conf.json, as values: this crate runs none.

use podwire_model::Name;

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// As the administrator wrote it.
    pub line: String,
    /// Variables to set besides the agent's own.
    pub environment: Vec<(&'static str, String)>,
    /// What it reads from its standard input.
    pub input: String,
}

impl Command {
    /// The program and its arguments: the line split at white space, then `$NAME` and `${NAME}` replaced by the variables
    /// of [`Command::environment`] or else what `other` says of them; an unknown variable is empty. There is no shell, as
    /// in flannel (`pkg/backend/extension`): nothing else has a meaning, and a value cannot become code.
    pub fn words(&self, other: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let value = |name: &str| {
            let own = self.environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
            own.or_else(|| other(name)).unwrap_or_default()
        };
        self.line.split_whitespace().map(|word| expanded(word, &value)).collect()
    }
}

fn expanded(word: &str, value: &impl Fn(&str) -> String) -> String {
    let mut parts = word.split('$');
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = match part.strip_prefix('{') {
            Some(braced) => braced.split_once('}').unwrap_or((braced, "")),
            None => part.split_at(part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len())),
        };
        result.push_str(&if name.is_empty() { "$".to_owned() } else { value(name) });
        result.push_str(rest);
    }
    result
}

/// What to run when something comes, and when it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Whose it is: a peer's name, or the empty name for this node.
    pub name: Name,
    /// When it comes.
    pub start: Option<Command>,
    /// When it goes.
    pub stop: Option<Command>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command(line: &str) -> Command {
        Command {
            line: line.to_owned(),
            environment: vec![("SUBNET", "10.244.1.0/24".to_owned()), ("PUBLIC_IP", "; rm *".to_owned())],
            input: String::new(),
        }
    }

    #[test]
    fn words_are_split_and_variables_are_replaced_by_one_word_each() {
        let other = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let rows = [
            ("ip route add $SUBNET via ${PUBLIC_IP}", &["ip", "route", "add", "10.244.1.0/24", "via", "; rm *"][..]),
            ("  a$HOME/b${HOME}c $NONE.  ", &["a/root/b/rootc", "."]),
            ("a$ ${SUBNET", &["a$", "10.244.1.0/24"]),
            ("", &[]),
        ];
        for (line, expected) in rows {
            assert_eq!(command(line).words(other), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_split(line in r"[ -~é]{0,60}") {
            let words = command(&line).words(|_| None);
            prop_assert_eq!(words.len(), line.split_whitespace().count());
        }
    }
}
