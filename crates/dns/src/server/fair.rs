//! Who is answered when more is asked than can be: every client the same share.

use std::{collections::HashMap, net::IpAddr};

/// How many queries of each client to answer, of those that wait at a busy socket, when `budget` can be answered in all.
///
/// A share that a client does not need goes to the others; so one that floods gets what the rest leave.
pub(super) struct Shares {
    left: HashMap<IpAddr, usize>,
}

impl Shares {
    /// Divides `budget` among the clients that `asked`, one item a query.
    pub(super) fn divide(asked: impl Iterator<Item = IpAddr>, budget: usize) -> Self {
        let mut left: HashMap<IpAddr, usize> = HashMap::new();
        asked.for_each(|client| *left.entry(client).or_default() += 1);
        let mut by_need: Vec<(IpAddr, usize)> = left.iter().map(|(client, wanted)| (*client, *wanted)).collect();
        by_need.sort_unstable_by_key(|(_, wanted)| *wanted);
        let (mut budget, mut clients) = (budget, by_need.len());
        for (client, wanted) in by_need {
            let share = wanted.min(budget / clients);
            budget -= share;
            clients -= 1;
            left.insert(client, share);
        }
        Self { left }
    }

    /// Whether this query of `client` is within its share; counts it.
    pub(super) fn take(&mut self, client: IpAddr) -> bool {
        let left = self.left.get_mut(&client).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn answered(asked: &[(u8, usize)], budget: usize) -> Vec<usize> {
        let queries = || asked.iter().flat_map(|(n, count)| std::iter::repeat_n(client(*n), *count));
        let mut shares = Shares::divide(queries(), budget);
        let taken: Vec<IpAddr> = queries().filter(|client| shares.take(*client)).collect();
        asked.iter().map(|(n, _)| taken.iter().filter(|taken| **taken == client(*n)).count()).collect()
    }

    #[test]
    fn a_flood_gets_what_the_others_leave() {
        assert_eq!(answered(&[(1, 1000), (2, 3), (3, 20)], 100), [77, 3, 20]);
        assert_eq!(answered(&[(1, 1000)], 100), [100], "alone it may have all");
        assert_eq!(answered(&[(1, 500), (2, 500)], 100), [50, 50]);
        assert_eq!(answered(&[(1, 5), (2, 5)], 100), [5, 5], "nobody is cut when there is enough");
        assert_eq!(answered(&[(1, 5), (2, 5)], 0), [0, 0]);
    }
}
