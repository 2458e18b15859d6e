//! Writing a table only if it is not there yet.

use super::{Action, Batch, Chain, Nftables, Rule, Table, TableInfo};
use crate::Result;

/// What a batch that makes one table anew leaves there.
#[derive(Default)]
struct Wanted<'a> {
    table: Option<(&'a Table, Option<&'a str>)>,
    chains: Vec<&'a Chain>,
    rules: Vec<(&'a str, &'a Rule)>,
    /// There are steps that are not understood here.
    more: bool,
}

impl Batch {
    /// Commits the batch unless the kernel holds what it makes already. Returns whether it was committed.
    ///
    /// That is found out for a batch that makes one table of chains and rules anew ([`Batch::replace_table`]); any other
    /// is committed in any case.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub fn ensure(&self, kernel: &mut dyn Nftables) -> Result<bool> {
        let wanted = self.wanted();
        let commit = match wanted.is_held(kernel) {
            Ok(held) => !held,
            // Somebody deleted the table meanwhile.
            Err(error) if error.is_not_found() => true,
            Err(error) => return Err(error),
        };
        if commit {
            kernel.commit(self)?;
        }
        Ok(commit)
    }

    fn wanted(&self) -> Wanted<'_> {
        let mut wanted = Wanted::default();
        for (table, action) in self.steps() {
            wanted.more |= wanted.table.is_some_and(|(other, _)| other != table);
            match action {
                Action::AddTable { comment } => wanted.table = Some((table, comment.as_deref())),
                Action::DeleteTable => wanted = Wanted { table: wanted.table, more: wanted.more, ..Wanted::default() },
                Action::AddChain(chain) => wanted.chains.push(chain),
                Action::AddRule { chain, rule } => wanted.rules.push((chain, rule)),
                _ => wanted.more = true,
            }
        }
        wanted
    }
}

impl Wanted<'_> {
    fn is_held(&self, kernel: &mut dyn Nftables) -> Result<bool> {
        let Some((table, comment)) = self.table.filter(|_| !self.more) else { return Ok(false) };
        let is_it = |found: &TableInfo| found.table == *table && found.comment.as_deref() == comment;
        if !kernel.tables()?.iter().any(is_it) || !kernel.sets(table)?.is_empty() {
            return Ok(false);
        }
        let (chains, rules) = (kernel.chains(table)?, kernel.rules(table)?);
        if chains.len() != self.chains.len() || rules.len() != self.rules.len() {
            return Ok(false);
        }
        let same = |chain: &&Chain| {
            let mut wanted = self.rules.iter().filter(|(name, _)| *name == &*chain.name).map(|(_, rule)| *rule);
            let mut found = rules.iter().filter(|rule| rule.chain == chain.name);
            let does = |rule: &Rule| found.next().is_some_and(|is| is.does(rule) && is.comment == rule.comment);
            chains.contains(chain) && wanted.all(does)
        };
        Ok(self.chains.iter().all(same))
    }
}

#[cfg(test)]
mod tests {
    use podwire_model::Family::V4;

    use super::*;
    use crate::{
        nftables::{ChainKind, Fake, Family, Field, Hook, Is, Kernel, Set, SetData, SetKind, priority},
        test_support::in_new_netns,
    };

    /// A change to a batch, given the handle of the first rule.
    type Change<'a> = &'a dyn Fn(&mut Batch, u64);

    fn table() -> Table {
        Table::new(Family::Ip, "ensured")
    }

    fn batch() -> Batch {
        let (table, net) = (table(), "10.244.0.0/16".parse().unwrap());
        let mut batch = Batch::new();
        batch.replace_table(&table, Some("a comment"));
        for (name, kind, hook, priority) in [
            ("forward", ChainKind::Filter, Hook::Forward, priority::FILTER),
            ("postrtg", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
        ] {
            batch.add_chain(&table, Chain::base(name, kind, hook, priority));
        }
        batch.add_rule(&table, "forward", Rule::new(V4).source(Is::Equal, net).accept());
        batch.add_rule(&table, "forward", Rule::new(V4).destination(Is::Equal, net).accept().comment("to pods"));
        batch.add_rule(&table, "postrtg", Rule::new(V4).source(Is::Equal, net).masquerade(0));
        batch
    }

    fn on_both(test: impl Fn(&mut dyn Nftables) + Send + Sync) {
        test(&mut Fake::new());
        in_new_netns(|| test(&mut Kernel::open().unwrap()));
    }

    #[test]
    fn what_is_there_is_not_written_again_and_whatever_was_changed_is() {
        on_both(|kernel| {
            assert!(batch().ensure(kernel).unwrap(), "nothing was there");
            assert!(!batch().ensure(kernel).unwrap());
            let (table, net) = (table(), "10.0.0.0/8".parse().unwrap());
            let set = Set {
                name: "s".into(),
                key: vec![Field::Mark],
                data: SetData::None,
                kind: SetKind::Plain,
                size: None,
                comment: None,
            };
            let changes: [Change<'_>; 6] = [
                &|change, _| change.delete_table(&table),
                &|change, _| change.flush_chain(&table, "postrtg"),
                &|change, first| change.delete_rule(&table, "forward", first),
                &|change, _| change.add_rule(&table, "forward", Rule::new(V4).drop()),
                &|change, _| change.add_chain(&table, Chain::regular("more")),
                &|change, _| change.add_set(&table, set.clone()),
            ];
            for (at, make) in changes.iter().enumerate() {
                let mut change = Batch::new();
                let rules = kernel.rules(&table).unwrap();
                make(&mut change, rules.iter().find(|rule| &*rule.chain == "forward").unwrap().handle);
                kernel.commit(&change).unwrap();
                assert!(batch().ensure(kernel).unwrap(), "change {at}");
                assert!(!batch().ensure(kernel).unwrap(), "change {at}");
            }
            let mut other = batch();
            other.add_rule(&table, "forward", Rule::new(V4).source(Is::Equal, net).accept());
            assert!(other.ensure(kernel).unwrap());
            assert!(!other.ensure(kernel).unwrap());
        });
    }

    #[test]
    fn what_is_not_a_whole_table_is_always_committed() {
        on_both(|kernel| {
            let mut batch = batch();
            batch.add_table(&Table::new(Family::Ip6, "another"), None);
            assert!(batch.ensure(kernel).unwrap());
            assert!(batch.ensure(kernel).unwrap());
            assert!(Batch::new().ensure(kernel).unwrap(), "and does nothing");
        });
    }
}
