//! What can be done with traffic at a frontend: the number that stands for it in the maps, and the chain that does it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use podwire_kernel::nftables::Verdict;

use super::render::{REJECT, REJECT_ALLOWED};
use crate::plan::{Action, Entry, Frontend, Masquerade, Treatment};

/// The most endpoints of one frontend: their number has 16 bits.
pub const MOST_ENDPOINTS: usize = u16::MAX as usize;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Dropped.
    Drop,
    /// Refused at once.
    Reject,
    /// Refused at once if the source is allowed, dropped if not.
    RejectAllowed,
    /// Sent to one of some endpoints.
    Pick(Pick),
}

/// The chain that picks one of `count` endpoints: one for each distinct number and way, not one for each Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pick {
    /// Whether the key is a node port.
    pub node_port: bool,
    /// Whether it picks from the endpoints for outside traffic.
    pub outside: bool,
    /// Whose source is replaced.
    pub masquerade: Masquerade,
    /// Whether only some sources may enter.
    pub restricted: bool,
    /// How many seconds a client keeps its endpoint after it was last used; zero if it does not.
    pub sticky: u32,
    /// How many endpoints there are.
    pub count: u16,
}

impl Default for Pick {
    fn default() -> Self {
        let masquerade = Masquerade::OffCluster;
        Self { node_port: false, outside: false, masquerade, restricted: false, sticky: 0, count: 0 }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.node_port { "nodeport" } else { "vip" })?;
        f.write_str(if self.outside { "-outside" } else { "" })?;
        f.write_str(match self.masquerade {
            Masquerade::OffCluster => "",
            Masquerade::Always => "-masq",
            Masquerade::Never => "-nomasq",
        })?;
        f.write_str(if self.restricted { "-restricted" } else { "" })?;
        match self.sticky {
            0 => write!(f, "-{}", self.count),
            seconds => write!(f, "-sticky{seconds}-{}", self.count),
        }
    }
}

/// The name is not that of a [`Pick`] chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAPick;

impl FromStr for Pick {
    type Err = NotAPick;

    fn from_str(name: &str) -> Result<Self, NotAPick> {
        let mut words = name.split('-');
        let mut pick = match words.next() {
            Some("vip") => Self::default(),
            Some("nodeport") => Self { node_port: true, ..Self::default() },
            _ => return Err(NotAPick),
        };
        for word in words {
            match word {
                "outside" => pick.outside = true,
                "masq" => pick.masquerade = Masquerade::Always,
                "nomasq" => pick.masquerade = Masquerade::Never,
                "restricted" => pick.restricted = true,
                word => match word.strip_prefix("sticky") {
                    Some(seconds) => pick.sticky = seconds.parse().map_err(|_| NotAPick)?,
                    None => pick.count = word.parse().map_err(|_| NotAPick)?,
                },
            }
        }
        if pick.to_string() == name { Ok(pick) } else { Err(NotAPick) }
    }
}

impl Pick {
    /// The same way with one endpoint less, as many, and one more.
    pub fn near(self) -> impl Iterator<Item = Self> {
        let counts = self.count.saturating_sub(1).max(1)..=self.count.saturating_add(1);
        counts.map(move |count| Self { count, ..self })
    }
}

impl Kind {
    /// What a treatment does with inside or outside traffic; `None` if outside traffic is treated like inside traffic.
    pub fn of(frontend: &Frontend, treatment: &Treatment, outside: bool) -> Option<Self> {
        let restricted = treatment.sources.is_some() && matches!(frontend.entry, Entry::Address(_));
        Some(match action(treatment, outside)? {
            Action::Drop => Self::Drop,
            Action::Reject if restricted => Self::RejectAllowed,
            Action::Reject => Self::Reject,
            Action::Balance { backends, masquerade, .. } => Self::Pick(Pick {
                node_port: matches!(frontend.entry, Entry::NodePort(_)),
                outside,
                masquerade: *masquerade,
                restricted,
                sticky: treatment.affinity.map_or(0, |time| time.as_secs() as u32),
                count: backends.len().min(MOST_ENDPOINTS) as u16,
            }),
        })
    }

    /// Where it leads.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Drop => Verdict::Drop,
            Self::Reject => Verdict::Goto(REJECT.into()),
            Self::RejectAllowed => Verdict::Goto(REJECT_ALLOWED.into()),
            Self::Pick(pick) => Verdict::Goto(pick.to_string().into()),
        }
    }

    /// What leads there; `None` if it is none of ours.
    pub fn from_verdict(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Drop => Some(Self::Drop),
            Verdict::Goto(chain) if **chain == *REJECT => Some(Self::Reject),
            Verdict::Goto(chain) if **chain == *REJECT_ALLOWED => Some(Self::RejectAllowed),
            Verdict::Goto(chain) => chain.parse().ok().map(Self::Pick),
            _ => None,
        }
    }
}

/// What a treatment does with inside or outside traffic; `None` if outside traffic is treated like inside traffic.
pub fn action(treatment: &Treatment, outside: bool) -> Option<&Action> {
    if outside { treatment.outside.as_ref() } else { Some(&treatment.inside) }
}

/// Gives kinds their numbers.
///
/// A number is `slot << 21 | flags << 16 | count`, so that `0x00000003` reads as three endpoints. Only the time that
/// clients stick does not fit in. Each distinct one has a slot, which is its hash; of those with one hash (and then only
/// the number depends on history) the next one that is free.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    /// The seconds of each slot in use, from 1 to [`SLOTS`].
    slots: BTreeMap<u32, u32>,
}

const SLOT_SHIFT: u32 = 21;
const SLOTS: u32 = (1 << (u32::BITS - SLOT_SHIFT)) - 1;

impl Numbers {
    /// Kinds that are always there: their numbers and chains do not depend on anything.
    pub const FIXED: [(u32, Kind); 3] = [(0, Kind::Drop), (1 << 16, Kind::Reject), (2 << 16, Kind::RejectAllowed)];

    /// The number of a kind. (Where there are more times than slots, that of the same kind with another time.)
    pub fn number(&mut self, kind: &Kind) -> u32 {
        match kind {
            Kind::Pick(pick) => self.slot(pick.sticky) << SLOT_SHIFT | flags(pick) << 16 | u32::from(pick.count),
            fixed => Self::FIXED.iter().find(|(_, kind)| kind == fixed).map_or(0, |(number, _)| *number),
        }
    }

    fn slot(&mut self, seconds: u32) -> u32 {
        if seconds == 0 {
            return 0;
        }
        let first = podwire_kernel::stable_hash(seconds.to_be_bytes()) as u32 % SLOTS;
        let slots = (0..SLOTS).map(|step| (first + step) % SLOTS + 1);
        let mut fitting = slots.filter(|slot| self.slots.get(slot).is_none_or(|taken| *taken == seconds));
        let slot = fitting.next().unwrap_or(first + 1);
        self.slots.entry(slot).or_insert(seconds);
        slot
    }

    /// The kind that a number stands for, if it is one that was given or learnt.
    pub fn kind(&self, number: u32) -> Option<Kind> {
        if let Some((_, kind)) = Self::FIXED.iter().find(|(fixed, _)| *fixed == number) {
            return Some(*kind);
        }
        let flag = |bit: u32| number & 1 << bit != 0;
        let sticky = match number >> SLOT_SHIFT {
            0 => 0,
            slot => *self.slots.get(&slot)?,
        };
        let masquerade = match number >> 18 & 3 {
            0 => Masquerade::OffCluster,
            1 => Masquerade::Always,
            2 => Masquerade::Never,
            _ => return None,
        };
        let (node_port, outside, restricted) = (flag(16), flag(17), flag(20));
        let count = number as u16;
        (count > 0).then_some(Kind::Pick(Pick { node_port, outside, masquerade, restricted, sticky, count }))
    }

    /// Learns a number that an earlier run gave; says whether it is one that the kind can have, and no other kind does.
    pub fn learn(&mut self, number: u32, kind: &Kind) -> bool {
        if let (Kind::Pick(Pick { sticky: seconds @ 1.., .. }), slot @ 1..) = (kind, number >> SLOT_SHIFT) {
            self.slots.entry(slot).or_insert(*seconds);
        }
        self.kind(number) == Some(*kind)
    }
}

const fn flags(pick: &Pick) -> u32 {
    let masquerade = match pick.masquerade {
        Masquerade::OffCluster => 0,
        Masquerade::Always => 1,
        Masquerade::Never => 2,
    };
    pick.node_port as u32 | (pick.outside as u32) << 1 | masquerade << 2 | (pick.restricted as u32) << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Pick> {
        let mut all = Vec::new();
        for bits in 0..8 {
            for masquerade in [Masquerade::OffCluster, Masquerade::Always, Masquerade::Never] {
                for (sticky, count) in [(0, 1), (10800, 3), (1, u16::MAX), (86400, 1)] {
                    let [node_port, outside, restricted] = [1, 2, 4].map(|bit| bits & bit != 0);
                    all.push(Pick { node_port, outside, masquerade, restricted, sticky, count });
                }
            }
        }
        all
    }

    #[test]
    fn chains_say_what_they_do() {
        for pick in all() {
            let kind = Kind::Pick(pick);
            assert_eq!(Kind::from_verdict(&kind.verdict()), Some(kind));
        }
        assert_eq!("vip-outside-nomasq-restricted-sticky60-3".parse::<Pick>().map(|pick| pick.sticky), Ok(60));
        for name in ["", "vip", "vip-x", "vip-3-masq", "service-3", "vip-+3", "vip-sticky-3", "vip-70000"] {
            assert_eq!(name.parse::<Pick>(), Err(NotAPick), "{name}");
        }
    }

    #[test]
    fn numbers_are_distinct_and_can_be_learnt() {
        let kinds: Vec<_> = all().into_iter().map(Kind::Pick).chain(Numbers::FIXED.map(|(_, kind)| kind)).collect();
        let mut numbers = Numbers::default();
        let given: Vec<_> = kinds.iter().map(|kind| (numbers.number(kind), *kind)).collect();
        let distinct: std::collections::BTreeSet<_> = given.iter().map(|(number, _)| *number).collect();
        assert_eq!(distinct.len(), kinds.len());
        assert_eq!(numbers.number(&Kind::Pick(Pick { count: 3, ..Pick::default() })), 3);

        let mut learnt = Numbers::default();
        for (number, kind) in given.iter().rev() {
            assert!(learnt.learn(*number, kind), "{number:#x} {kind:?}");
            assert_eq!((learnt.number(kind), learnt.kind(*number)), (*number, Some(*kind)));
        }
        let pick = |sticky| Kind::Pick(Pick { sticky, count: 1, ..Pick::default() });
        assert!(!learnt.learn(learnt.clone().number(&pick(1)), &pick(77)), "that slot is another time's");
        assert!(!learnt.learn(2, &pick(0)), "that is the number of two endpoints");
        assert!(!learnt.learn(0, &Kind::Reject));
    }

    #[test]
    fn a_number_does_not_depend_on_other_kinds_and_there_may_be_too_many_times() {
        let pick = |sticky| Kind::Pick(Pick { sticky, count: 1, ..Pick::default() });
        let mut numbers = Numbers::default();
        let first = Numbers::default().number(&pick(10800));
        numbers.number(&pick(60));
        assert_eq!(numbers.number(&pick(10800)), first);
        for seconds in 1..=SLOTS * 2 {
            let number = numbers.number(&pick(seconds));
            assert!(matches!(numbers.kind(number), Some(Kind::Pick(Pick { count: 1, .. }))));
        }
    }
}
