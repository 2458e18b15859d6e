use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use ipnet::{IpNet, Ipv4Net};

/// Which node gets which packets: of the ranges that hold a destination, the longest prefix decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// By prefix length, the longest first; by network address. Nodes' ranges have one length as a rule.
    lengths: Vec<(u8, HashMap<Ipv4Addr, SocketAddrV4>)>,
}

impl FromIterator<(Ipv4Net, SocketAddrV4)> for Table {
    /// Of two lines for one range the later counts.
    fn from_iter<T: IntoIterator<Item = (Ipv4Net, SocketAddrV4)>>(lines: T) -> Self {
        let mut lengths = BTreeMap::<u8, HashMap<_, _>>::new();
        for (range, to) in lines {
            lengths.entry(range.prefix_len()).or_default().insert(range.network(), to);
        }
        Self { lengths: lengths.into_iter().rev().collect() }
    }
}

impl FromIterator<(IpNet, SocketAddr)> for Table {
    /// Lines of [`crate::Overlay::forwards`]; those of IPv6 are left out.
    fn from_iter<T: IntoIterator<Item = (IpNet, SocketAddr)>>(lines: T) -> Self {
        let lines = lines.into_iter().filter_map(|line| match line {
            (IpNet::V4(range), SocketAddr::V4(to)) => Some((range, to)),
            _ => None,
        });
        lines.collect()
    }
}

impl Table {
    /// Takes in one line of [`crate::Outcome::forwards`]; `None` removes it. Those of IPv6 are left out.
    pub fn change(&mut self, range: IpNet, to: Option<SocketAddr>) {
        let IpNet::V4(range) = range else { return };
        let at = self.lengths.binary_search_by(|(length, _)| range.prefix_len().cmp(length));
        match (to, at) {
            (Some(SocketAddr::V4(to)), Ok(at)) => _ = self.lengths[at].1.insert(range.network(), to),
            (Some(SocketAddr::V4(to)), Err(at)) => {
                self.lengths.insert(at, (range.prefix_len(), HashMap::from([(range.network(), to)])));
            }
            (None, Ok(at)) => {
                self.lengths[at].1.remove(&range.network());
                self.lengths.retain(|(_, networks)| !networks.is_empty());
            }
            _ => {}
        }
    }

    /// The tunnel end of the node that has `destination`.
    pub fn find(&self, destination: Ipv4Addr) -> Option<SocketAddrV4> {
        self.lengths.iter().find_map(|(length, networks)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
            networks.get(&Ipv4Addr::from(u32::from(destination) & mask)).copied()
        })
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.lengths.iter().map(|(_, networks)| networks.len()).sum()
    }

    /// Whether no node has anything.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let lines = [("10.244.1.0/24", 1), ("10.244.0.0/16", 2), ("10.244.1.7/32", 3), ("0.0.0.0/0", 4)];
        let to = |n| SocketAddrV4::new([192, 0, 2, n].into(), 8285);
        let table: Table = lines.iter().map(|(range, n)| (range.parse().unwrap(), to(*n))).collect();
        for (destination, n) in [("10.244.1.1", 1), ("10.244.2.1", 2), ("10.244.1.7", 3), ("10.0.0.1", 4)] {
            assert_eq!(table.find(destination.parse().unwrap()), Some(to(n)), "{destination}");
        }
        assert_eq!((table.len(), table.is_empty()), (4, false));
        assert_eq!(Table::default().find([10, 0, 0, 1].into()), None);
    }

    proptest! {
        #[test]
        fn changes_lead_to_what_is_made_at_once(changes in proptest::collection::vec((0_u32..8, 28_u8..=32, any::<Option<u16>>()), 0..40)) {
            let (mut table, mut lines) = (Table::default(), BTreeMap::new());
            for (bits, length, port) in changes {
                let range = Ipv4Net::new((bits << 1).into(), length).unwrap().trunc();
                let to = port.map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
                table.change(range.into(), to.map(SocketAddr::V4));
                match to {
                    Some(to) => _ = lines.insert(range, to),
                    None => _ = lines.remove(&range),
                }
            }
            prop_assert_eq!(table, lines.into_iter().collect());
        }

        #[test]
        fn it_finds_what_a_search_through_all_lines_finds(
            lines in proptest::collection::vec((any::<u32>(), 0_u8..=32, any::<u16>()), 0..20), bits: u32, near in 0_usize..20,
        ) {
            let lines: Vec<_> = lines.into_iter().map(|(bits, length, port)| {
                (Ipv4Net::new(bits.into(), length).unwrap().trunc(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
            }).collect();
            let destination = lines.get(near).map_or(Ipv4Addr::from(bits), |(range, _)| range.broadcast());
            let holding = lines.iter().filter(|(range, _)| range.contains(&destination));
            let expected = holding.max_by_key(|(range, _)| range.prefix_len()).map(|(_, to)| *to);
            let table: Table = lines.iter().copied().collect();
            prop_assert_eq!(table.find(destination), expected);
        }
    }
}
