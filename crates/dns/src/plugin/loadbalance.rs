//! `loadbalance`: answers come in another order each time, so that clients which take the first address spread.

use domain::base::iana::Rtype;

use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive},
    message::{Query, Record, Reply},
    program::SiteBuilder,
};

/// `loadbalance [round_robin]`
pub struct LoadBalance;

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    match directive.plain(0, 2)? {
        [] => {}
        [policy] if policy.text == "round_robin" => {}
        [policy, ..] if policy.text == "weighted" => {
            return Err(policy.error("loadbalance: policy \"weighted\" is not supported yet"));
        }
        [policy, ..] => return Err(policy.error(format!("loadbalance: unknown policy {:?}", policy.text))),
    }
    site.add(LoadBalance);
    Ok(())
}

impl Plugin for LoadBalance {
    fn name(&self) -> &'static str {
        "loadbalance"
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        let mut random = query.arrival.random;
        for section in [&mut reply.answer, &mut reply.authority, &mut reply.additional] {
            shuffle(section, &mut random);
        }
    }
}

/// Aliases first, then what is neither address nor MX, then addresses, then MX; the last two shuffled.
fn shuffle(records: &mut [Record], random: &mut u64) {
    if records.len() < 2 {
        return;
    }
    records.sort_by_key(|record| match record.rtype() {
        Rtype::CNAME => 0,
        Rtype::A | Rtype::AAAA => 2,
        Rtype::MX => 3,
        _ => 1,
    });
    let from = |rank: fn(Rtype) -> bool| move |record: &Record| !rank(record.rtype());
    let addresses = records.partition_point(from(|rtype| matches!(rtype, Rtype::A | Rtype::AAAA | Rtype::MX)));
    let mx = records.partition_point(from(|rtype| rtype == Rtype::MX));
    fisher_yates(&mut records[addresses..mx], random);
    fisher_yates(&mut records[mx..], random);
}

/// Puts items in any order, each as likely as the others.
pub(super) fn fisher_yates<T>(items: &mut [T], random: &mut u64) {
    for last in (1..items.len()).rev() {
        // Knuth's MMIX generator; the high bits are the good ones.
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (*random >> 33) as usize % (last + 1));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv4Addr};

    use domain::rdata::{A, Cname};

    use super::*;
    use crate::message::{Data, DnsName, record};

    fn address(last: u8) -> Record {
        record(DnsName::root_bytes(), 5, Data::A(A::new(Ipv4Addr::new(10, 0, 0, last))))
    }

    #[test]
    fn addresses_move_and_aliases_come_first() {
        let alias = record(DnsName::root_bytes(), 5, Data::Cname(Cname::new(DnsName::root_bytes())));
        let mut orders = HashSet::new();
        for seed in 0..1000 {
            let mut records: Vec<_> = (1..=3).map(address).chain([alias.clone()]).collect();
            shuffle(&mut records, &mut u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
            assert_eq!(records[0], alias);
            orders.insert(format!("{:?}", &records[1..]));
        }
        assert_eq!(orders.len(), 6, "every order of three addresses");
    }
}
