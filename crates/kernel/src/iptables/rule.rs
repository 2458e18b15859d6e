//! Rules as values. They print themselves in the order and the spelling of `iptables-save`.

use std::fmt::{self, Display, Write as _};

use podwire_model::{Family, IpNet};

/// A value that must match, or must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Is<T> {
    /// Inverted: `!`.
    pub not: bool,
    /// The value.
    pub value: T,
}

impl<T> Is<T> {
    /// Must match.
    pub const fn equal(value: T) -> Self {
        Self { not: false, value }
    }

    /// Must not match.
    pub const fn not(value: T) -> Self {
        Self { not: true, value }
    }

    fn bang(&self) -> &'static str {
        if self.not { "! " } else { "" }
    }
}

/// A rule, without the chain it is in. Everything that is not `None` must match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// `-s`.
    pub source: Option<Is<IpNet>>,
    /// `-d`.
    pub destination: Option<Is<IpNet>>,
    /// `-i`; a `+` at its end stands for any text.
    pub input: Option<Is<String>>,
    /// `-o`; likewise.
    pub output: Option<Is<String>>,
    /// `-p`: a name as `iptables-save` prints it (`tcp`, `udp`, `sctp`, `icmp` …), or a number.
    pub protocol: Option<Is<String>>,
    /// `-m`, in order.
    pub matches: Vec<Match>,
    /// `-j` or `-g`; without it the rule only counts.
    pub target: Option<Target>,
}

/// A match module (`-m`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `comment`: always matches.
    Comment(String),
    /// `tcp`, `udp`, `sctp`.
    Ports(Ports),
    /// `mark`: value and mask.
    Mark(Is<(u32, u32)>),
    /// `addrtype`: kind of the source and of the destination.
    AddressType {
        /// `--src-type`.
        source: Option<Is<AddressKind>>,
        /// `--dst-type`.
        destination: Option<Is<AddressKind>>,
    },
    /// `statistic --mode random`: matches with a probability of this number divided by 2³¹.
    Random(u32),
    /// `recent`: when an address was last seen.
    Recent(Recent),
    /// `conntrack --ctstate`: the connection is in one of these states.
    CtState(Is<CtStates>),
    /// `set --match-set`: an ipset, and its directions (`src`, `dst,dst` …).
    Set(Is<(String, String)>),
}

/// Ports (`-m tcp --dport 80`); as ranges, first and last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// `--sport`.
    pub source: Option<Is<(u16, u16)>>,
    /// `--dport`.
    pub destination: Option<Is<(u16, u16)>>,
}

/// `-m addrtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// An address of this machine.
    Local,
    /// Ordinary unicast.
    Unicast,
}

impl AddressKind {
    /// As the option takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "LOCAL",
            Self::Unicast => "UNICAST",
        }
    }
}

/// `-m recent`, by source address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recent {
    /// Notes that the source was seen now.
    Set {
        /// The list's name.
        name: String,
    },
    /// Matches if the source was seen within so many seconds; forgets those that were not.
    Check {
        /// The list's name.
        name: String,
        /// How long ago at most.
        seconds: u32,
    },
}

/// A set of connection tracking states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CtStates(u8);

impl CtStates {
    /// Unknown to connection tracking.
    pub const INVALID: Self = Self(1);
    /// The first packets.
    pub const NEW: Self = Self(1 << 1);
    /// Belongs to another connection.
    pub const RELATED: Self = Self(1 << 2);
    /// There were packets both ways.
    pub const ESTABLISHED: Self = Self(1 << 3);
    /// Not to be tracked.
    pub const UNTRACKED: Self = Self(1 << 4);
    /// Its source was replaced.
    pub const SNAT: Self = Self(1 << 5);
    /// Its destination was replaced.
    pub const DNAT: Self = Self(1 << 6);

    /// In the order in which `iptables-save` prints them.
    pub const NAMES: [(Self, &str); 7] = [
        (Self::INVALID, "INVALID"),
        (Self::NEW, "NEW"),
        (Self::RELATED, "RELATED"),
        (Self::ESTABLISHED, "ESTABLISHED"),
        (Self::UNTRACKED, "UNTRACKED"),
        (Self::SNAT, "SNAT"),
        (Self::DNAT, "DNAT"),
    ];

    /// Both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every state of `other` is in here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Where a jump leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// The chain.
    pub chain: String,
    /// Without a way back (`-g`).
    pub goto: bool,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a chain.
    Chain(Jump),
    /// `ACCEPT`.
    Accept,
    /// `DROP`.
    Drop,
    /// `RETURN`.
    Return,
    /// `REJECT` with ICMP port unreachable.
    Reject,
    /// `MARK --set-xmark VALUE/MASK`: the mark's bits of the mask are cleared, then the value is XORed in.
    Mark {
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// `SET --map-set SET DIRECTIONS --map-mark`: the packet gets the mark that the ipset has for it.
    MapMark {
        /// The set, made with marks.
        set: String,
        /// What is looked up (`src`, `dst,dst` …).
        directions: String,
    },
    /// `MASQUERADE`.
    Masquerade {
        /// `--random-fully`.
        random_fully: bool,
    },
    /// `DNAT --to-destination`, as `ADDRESS:PORT` or `[ADDRESS]:PORT`.
    Dnat(String),
    /// `REDIRECT --to-ports`.
    Redirect(u16),
}

impl Target {
    /// A jump to a chain.
    pub fn jump(chain: impl Into<String>) -> Self {
        Self::Chain(Jump { chain: chain.into(), goto: false })
    }
}

impl Rule {
    /// A rule that matches every packet.
    pub fn to(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// With a comment after the matches that it has.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.matches.push(Match::Comment(text.into()));
        self
    }

    /// With another match.
    #[must_use]
    pub fn and(mut self, more: Match) -> Self {
        self.matches.push(more);
        self
    }

    /// With that target instead of the one that it has.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// The chain that it leads to.
    pub fn chain(&self) -> Option<&str> {
        match &self.target {
            Some(Target::Chain(jump)) => Some(&jump.chain),
            _ => None,
        }
    }

    /// Prints it as `iptables-save` or `ip6tables-save` would, without `-A CHAIN`.
    pub fn display(&self, family: Family) -> impl Display + '_ {
        Printed { rule: self, family }
    }
}

struct Printed<'a> {
    rule: &'a Rule,
    family: Family,
}

impl Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { source, destination, input, output, protocol, matches, target } = self.rule;
        let mut words = Words { f, first: true };
        for (option, net) in [("-s", source), ("-d", destination)] {
            if let Some(net) = net {
                words.put(format_args!("{}{option} {}", net.bang(), net.value))?;
            }
        }
        for (option, text) in [("-i", input), ("-o", output), ("-p", protocol)] {
            if let Some(text) = text {
                words.put(format_args!("{}{option} {}", text.bang(), text.value))?;
            }
        }
        for more in matches {
            words.match_(more, self.family)?;
        }
        target.as_ref().map_or(Ok(()), |target| words.target(target, self.family))
    }
}

/// Puts a blank before all but the first.
struct Words<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    first: bool,
}

impl Words<'_, '_> {
    fn put(&mut self, word: impl Display) -> fmt::Result {
        if !std::mem::replace(&mut self.first, false) {
            self.f.write_char(' ')?;
        }
        write!(self.f, "{word}")
    }

    fn match_(&mut self, more: &Match, family: Family) -> fmt::Result {
        match more {
            Match::Comment(text) => self.put(format_args!("-m comment --comment {}", Quoted(text))),
            Match::Ports(Ports { protocol, source, destination }) => {
                self.put(format_args!("-m {protocol}"))?;
                for (option, ports) in [("--sport", source), ("--dport", destination)] {
                    match ports {
                        Some(Is { not, value: (first, last) }) if first == last => {
                            self.put(format_args!("{}{option} {first}", if *not { "! " } else { "" }))?;
                        }
                        Some(ports) => {
                            let (first, last) = ports.value;
                            self.put(format_args!("{}{option} {first}:{last}", ports.bang()))?;
                        }
                        None => {}
                    }
                }
                Ok(())
            }
            Match::Mark(mark) => {
                let (value, mask) = mark.value;
                self.put(format_args!("-m mark {}--mark {value:#x}", mark.bang()))?;
                if mask == u32::MAX { Ok(()) } else { write!(self.f, "/{mask:#x}") }
            }
            Match::AddressType { source, destination } => {
                self.put("-m addrtype")?;
                for (option, kind) in [("--src-type", source), ("--dst-type", destination)] {
                    if let Some(kind) = kind {
                        self.put(format_args!("{}{option} {}", kind.bang(), kind.value.name()))?;
                    }
                }
                Ok(())
            }
            Match::Random(of_2_31) => {
                let probability = f64::from(*of_2_31) / f64::from(1_u32 << 31);
                self.put(format_args!("-m statistic --mode random --probability {probability:.11}"))
            }
            Match::Recent(recent) => self.recent(recent, family),
            Match::CtState(states) => {
                let names = CtStates::NAMES.iter().filter(|(state, _)| states.value.contains(*state));
                let names: Vec<_> = names.map(|(_, name)| *name).collect();
                self.put(format_args!("-m conntrack {}--ctstate {}", states.bang(), names.join(",")))
            }
            Match::Set(set) => {
                let (name, directions) = &set.value;
                self.put(format_args!("-m set {}--match-set {name} {directions}", set.bang()))
            }
        }
    }

    fn recent(&mut self, recent: &Recent, family: Family) -> fmt::Result {
        let mask = match family {
            Family::V4 => "255.255.255.255",
            Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        };
        let name = match recent {
            Recent::Set { name } => {
                self.put("-m recent --set")?;
                name
            }
            Recent::Check { name, seconds } => {
                self.put(format_args!("-m recent --rcheck --seconds {seconds} --reap"))?;
                name
            }
        };
        self.put(format_args!("--name {name} --mask {mask} --rsource"))
    }

    fn target(&mut self, target: &Target, family: Family) -> fmt::Result {
        match target {
            Target::Chain(Jump { chain, goto }) => self.put(format_args!("-{} {chain}", if *goto { 'g' } else { 'j' })),
            Target::Accept => self.put("-j ACCEPT"),
            Target::Drop => self.put("-j DROP"),
            Target::Return => self.put("-j RETURN"),
            Target::Reject => {
                let icmp = if family == Family::V4 { "icmp" } else { "icmp6" };
                self.put(format_args!("-j REJECT --reject-with {icmp}-port-unreachable"))
            }
            Target::Mark { value, mask } => self.put(format_args!("-j MARK --set-xmark {value:#x}/{mask:#x}")),
            Target::MapMark { set, directions } => {
                self.put(format_args!("-j SET --map-set {set} {directions} --map-mark"))
            }
            Target::Masquerade { random_fully } => {
                self.put(if *random_fully { "-j MASQUERADE --random-fully" } else { "-j MASQUERADE" })
            }
            Target::Dnat(to) => self.put(format_args!("-j DNAT --to-destination {to}")),
            Target::Redirect(port) => self.put(format_args!("-j REDIRECT --to-ports {port}")),
        }
    }
}

/// In quotes unless it is a plain word, as the programs print strings.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !self.0.is_empty() && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}
