//! Rules from text: what [`Rule`] prints, and the other spellings that kube-proxy and people use.

use std::str::FromStr;

use podwire_model::IpNet;

use super::rule::{AddressKind, CtStates, Is, Jump, Match, Ports, Recent, Rule, Target};

/// What is wrong with a rule, in words.
type Problem = String;

impl FromStr for Rule {
    type Err = Problem;

    /// Parses a rule without `-A CHAIN`. Whatever this module does not know is an error, never skipped.
    fn from_str(text: &str) -> Result<Self, Problem> {
        Parser { words: words(text)?.into_iter(), rule: Rule::default(), not: false }.run()
    }
}

/// Splits at blanks; quotes keep together, a backslash takes the next character as it is.
pub(super) fn words(text: &str) -> Result<Vec<String>, Problem> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quote = !quote;
                word.get_or_insert_default();
            }
            '\\' if quote => word.get_or_insert_default().push(chars.next().ok_or("a backslash at the end")?),
            c if c.is_whitespace() && !quote => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote { Err("a quote is not closed".to_owned()) } else { Ok(words) }
}

struct Parser {
    words: std::vec::IntoIter<String>,
    rule: Rule,
    /// A `!` was read.
    not: bool,
}

impl Parser {
    fn run(mut self) -> Result<Rule, Problem> {
        while let Some(word) = self.words.next() {
            if word == "!" {
                self.not = true;
                continue;
            }
            self.option(&word)?;
            if self.not {
                return Err(format!("{word} cannot be inverted"));
            }
        }
        if self.rule.matches.iter().any(|more| matches!(more, Match::Random(0)) || is_empty(more)) {
            return Err("a match without its options".to_owned());
        }
        Ok(self.rule)
    }

    fn option(&mut self, word: &str) -> Result<(), Problem> {
        match word {
            "-s" | "--source" | "--src" => self.rule.source = Some(self.parsed(word, net)?),
            "-d" | "--destination" | "--dst" => self.rule.destination = Some(self.parsed(word, net)?),
            "-i" | "--in-interface" => self.rule.input = Some(self.parsed(word, text)?),
            "-o" | "--out-interface" => self.rule.output = Some(self.parsed(word, text)?),
            "-p" | "--protocol" => self.rule.protocol = Some(self.parsed(word, text)?),
            "-m" | "--match" => {
                let name = self.value(word)?;
                self.rule.matches.push(begin(&name)?);
            }
            "-j" | "--jump" => self.target()?,
            "-g" | "--goto" => self.rule.target = Some(Target::Chain(Jump { chain: self.value(word)?, goto: true })),
            _ => self.match_option(word)?,
        }
        Ok(())
    }

    fn value(&mut self, option: &str) -> Result<String, Problem> {
        self.words.next().ok_or_else(|| format!("{option} has no value"))
    }

    /// A value, and whether a `!` came before the option.
    fn parsed<T>(&mut self, option: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Is<T>, Problem> {
        let not = std::mem::take(&mut self.not);
        let text = self.value(option)?;
        let value = parse(&text).ok_or_else(|| format!("{option} {text}: the value is not understood"))?;
        Ok(Is { not, value })
    }

    fn number<T: FromStr>(&mut self, option: &str) -> Result<T, Problem> {
        self.parsed(option, |text| text.parse().ok()).map(|is| is.value)
    }

    fn match_option(&mut self, option: &str) -> Result<(), Problem> {
        let unknown = || format!("unknown option \"{option}\"");
        // Options belong to the last match that has them; a loop over clones keeps the borrow checker out of it.
        let mut at = self.rule.matches.len();
        while at > 0 {
            at -= 1;
            let mut more = self.rule.matches[at].clone();
            if self.option_of(&mut more, option)? {
                self.rule.matches[at] = more;
                return Ok(());
            }
        }
        Err(unknown())
    }

    /// Whether `more` has that option; then its value was taken.
    fn option_of(&mut self, more: &mut Match, option: &str) -> Result<bool, Problem> {
        match (more, option) {
            (Match::Comment(comment), "--comment") => *comment = self.value(option)?,
            (Match::Ports(ports), "--sport" | "--source-port") => ports.source = Some(self.parsed(option, range)?),
            (Match::Ports(ports), "--dport" | "--destination-port") => {
                ports.destination = Some(self.parsed(option, range)?);
            }
            (Match::Mark(mark), "--mark") => *mark = self.parsed(option, masked)?,
            (Match::AddressType { source, .. }, "--src-type") => *source = Some(self.parsed(option, kind)?),
            (Match::AddressType { destination, .. }, "--dst-type") => *destination = Some(self.parsed(option, kind)?),
            (Match::Random(_), "--mode") => {
                self.parsed(option, |text| (text == "random").then_some(()))?;
            }
            (Match::Random(random), "--probability") => {
                let of_one: f64 = self.number(option)?;
                let scaled = (of_one * f64::from(1_u32 << 31)).round();
                if !(0.0..=f64::from(1_u32 << 31)).contains(&scaled) {
                    return Err("a probability is between 0 and 1".to_owned());
                }
                *random = scaled as u32;
            }
            (Match::Recent(recent), _) => return self.recent_option(recent, option),
            (Match::CtState(states), "--ctstate") => *states = self.parsed(option, ct_states)?,
            (Match::Set(set), "--match-set") => {
                let name = self.parsed(option, text)?;
                *set = Is { not: name.not, value: (name.value, self.value(option)?) };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn recent_option(&mut self, recent: &mut Recent, option: &str) -> Result<bool, Problem> {
        let (Recent::Set { name } | Recent::Check { name, .. }) = recent;
        match option {
            "--name" => *name = self.value(option)?,
            "--set" => *recent = Recent::Set { name: name.clone() },
            "--rcheck" => *recent = Recent::Check { name: name.clone(), seconds: 0 },
            "--seconds" => {
                let given = self.number(option)?;
                match recent {
                    Recent::Check { seconds, .. } => *seconds = given,
                    Recent::Set { .. } => return Err("--seconds needs --rcheck".to_owned()),
                }
            }
            "--reap" | "--rsource" => {}
            "--mask" => {
                let whole = |text: &str| matches!(text, "255.255.255.255" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
                self.parsed(option, |text| whole(text).then_some(()))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn target(&mut self) -> Result<(), Problem> {
        let name = self.value("-j")?;
        self.rule.target = Some(match name.as_str() {
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "RETURN" => Target::Return,
            "REJECT" => {
                if self.next_is("--reject-with") {
                    let icmp = ["icmp-port-unreachable", "icmp6-port-unreachable"];
                    self.parsed("--reject-with", |text| icmp.contains(&text).then_some(()))?;
                }
                Target::Reject
            }
            "MARK" => self.mark()?,
            "SET" => {
                self.expect("--map-set")?;
                let (set, directions) = (self.value("--map-set")?, self.value("--map-set")?);
                self.expect("--map-mark")?;
                Target::MapMark { set, directions }
            }
            "MASQUERADE" => Target::Masquerade { random_fully: self.next_is("--random-fully") },
            "DNAT" => {
                self.expect("--to-destination")?;
                Target::Dnat(self.value("--to-destination")?)
            }
            "REDIRECT" => {
                self.expect("--to-ports")?;
                Target::Redirect(self.number("--to-ports")?)
            }
            _ => Target::jump(name),
        });
        Ok(())
    }

    fn mark(&mut self) -> Result<Target, Problem> {
        let option = self.value("-j MARK")?;
        let (value, mask) = self.parsed(&option, masked)?.value;
        match option.as_str() {
            "--set-xmark" => Ok(Target::Mark { value, mask }),
            "--set-mark" => Ok(Target::Mark { value, mask: mask | value }),
            "--or-mark" => Ok(Target::Mark { value, mask: value }),
            "--xor-mark" => Ok(Target::Mark { value, mask: 0 }),
            "--and-mark" => Ok(Target::Mark { value: 0, mask: !value }),
            _ => Err(format!("unknown option \"{option}\"")),
        }
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.words.as_slice().first().is_some_and(|next| next == word);
        if is {
            self.words.next();
        }
        is
    }

    fn expect(&mut self, word: &str) -> Result<(), Problem> {
        if self.next_is(word) { Ok(()) } else { Err(format!("{word} is missing")) }
    }
}

/// A match before its options.
fn begin(name: &str) -> Result<Match, Problem> {
    Ok(match name {
        "comment" => Match::Comment(String::new()),
        "tcp" | "udp" | "sctp" => Match::Ports(Ports { protocol: name.to_owned(), source: None, destination: None }),
        "mark" => Match::Mark(Is::equal((0, 0))),
        "addrtype" => Match::AddressType { source: None, destination: None },
        "statistic" => Match::Random(0),
        "recent" => Match::Recent(Recent::Set { name: String::new() }),
        "conntrack" => Match::CtState(Is::equal(CtStates::default())),
        "set" => Match::Set(Is::equal((String::new(), String::new()))),
        _ => return Err(format!("Couldn't load match `{name}'")),
    })
}

/// An option without which the match means nothing did not come.
fn is_empty(more: &Match) -> bool {
    match more {
        Match::AddressType { source, destination } => source.is_none() && destination.is_none(),
        Match::Mark(mark) => mark.value == (0, 0),
        Match::CtState(states) => states.value == CtStates::default(),
        Match::Set(set) => set.value.0.is_empty(),
        Match::Recent(Recent::Set { name } | Recent::Check { name, .. }) => name.is_empty(),
        Match::Comment(_) | Match::Ports(_) | Match::Random(_) => false,
    }
}

fn net(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| Some(text.parse::<std::net::IpAddr>().ok()?.into())).map(|net| net.trunc())
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// `VALUE` or `VALUE/MASK`, decimal or hexadecimal.
fn masked(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn kind(text: &str) -> Option<AddressKind> {
    [AddressKind::Local, AddressKind::Unicast].into_iter().find(|kind| kind.name() == text)
}

fn ct_states(text: &str) -> Option<CtStates> {
    text.split(',').try_fold(CtStates::default(), |states, text| {
        let (state, _) = CtStates::NAMES.iter().find(|(_, name)| *name == text)?;
        Some(states.or(*state))
    })
}
