//! The difference, applied.

use super::*;
use crate::kernel::Done;

impl Overlay {
    /// Brings the kernel to what it should hold: reads it if need be, then creates and changes in the order device,
    /// address, neighbour, FDB entry, route, and after that removes in the opposite order what should not be there. So
    /// whatever takes the place of something else is complete before that goes.
    ///
    /// A refused operation does not stop the others, except that nothing is done on a device that could not be made, and
    /// that no device is removed while anything new is missing.
    ///
    /// # Errors
    /// The kernel could not be read; call again after a pause. Refused operations are in the [`Outcome`].
    pub fn apply(&mut self, kernel: &mut dyn Kernel) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        if self.state != Knowledge::Current {
            self.read(kernel, self.state == Knowledge::Stale)?;
        }
        self.resolve(kernel.as_route(), &mut outcome)?;
        self.adopt();
        self.state = Knowledge::Stale;
        // A device that is made again takes its addresses and entries with it, so the second round reads them anew.
        if self.create(kernel, &mut outcome) {
            self.read(kernel, false)?;
            self.state = Knowledge::Stale;
            self.create(kernel, &mut outcome);
        }
        self.remove(kernel, &mut outcome);
        if outcome.errors.is_empty() {
            self.state = Knowledge::Current;
        }
        Ok(outcome)
    }

    /// Reads what the kernel holds. With `blame`, what was right before and is not now was someone else's doing.
    fn read(&mut self, kernel: &mut dyn Kernel, blame: bool) -> Result<(), Error> {
        let wanted: Vec<Tunnel> = self.claims.tunnels().cloned().collect();
        let (devices, mut found) = Devices::dump(kernel, &self.site, &wanted)?;
        self.devices = devices;
        let delta = &mut self.claims.delta;
        if self.backend.leaves_routes_to_others() {
            let made_here = |entry: &Entry| delta.actual(&entry.key()).is_some() || self.devices.is_on_tunnel(entry);
            found.retain(|entry| !matches!(entry, Entry::Route { .. }) || made_here(entry));
        }
        let unfinished: HashSet<Key> =
            if blame { delta.pending().map(key_of).cloned().collect() } else { HashSet::new() };
        let elsewhere: Vec<Key> = delta.all_actual().filter(|key| key.is_user_space()).cloned().collect();
        let elsewhere: Vec<_> = elsewhere.into_iter().filter_map(|key| delta.actual(&key).cloned()).collect();
        delta.found(found.into_iter().chain(elsewhere).map(|entry| (entry.key(), entry)));
        if blame {
            let wrong = delta.pending().filter(|step| !matches!(step, Step::Delete(..))).map(key_of);
            self.damaged.extend(wrong.filter(|key| !unfinished.contains(key)).cloned());
        }
        self.state = Knowledge::Current;
        Ok(())
    }

    /// Lets peers of another backend keep what leads to them, and keeps the tunnels of the backend before.
    fn adopt(&mut self) {
        if self.adopting.is_empty() && !self.holding {
            return;
        }
        let holdings = Holdings::new(&self.claims.delta);
        let adopted = std::mem::take(&mut self.adopting).into_iter().filter_map(|name| {
            let subnet = self.peers.get(&name)?.lease.subnet;
            Some((name, holdings.leading_to(subnet, self.site.network)))
        });
        let mut adopted: Vec<(Name, Vec<Entry>)> = adopted.collect();
        if self.holding {
            adopted.push((BEFORE.into(), holdings.tunnels()));
        }
        for (owner, entries) in adopted {
            self.claims.replace(&owner, entries);
        }
    }

    /// Creates and changes. Returns true, early, when a device was made in place of another.
    fn create(&mut self, kernel: &mut dyn Kernel, outcome: &mut Outcome) -> bool {
        let (mut tunnels, mut entries, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
        for step in self.claims.delta.pending() {
            let (from, to) = match step {
                Step::Create(_, to) => (None, to),
                Step::Replace(_, from, to) => (Some(from), to),
                Step::Delete(..) => continue,
            };
            match to {
                Entry::Tunnel(tunnel) => tunnels.push(tunnel.clone()),
                to if to.key().is_user_space() => elsewhere.push((from.cloned(), to.clone())),
                to => entries.push(to.clone()),
            }
        }
        for tunnel in tunnels {
            match self.devices.put_tunnel(kernel, &tunnel) {
                Ok(Done::Nothing) => {
                    let entry = Entry::Tunnel(tunnel);
                    self.damaged.remove(&entry.key());
                    self.claims.delta.is(entry.key(), entry);
                }
                Ok(done) => {
                    self.created(Entry::Tunnel(tunnel), outcome);
                    if done == Done::Remade {
                        return true;
                    }
                }
                Err(error) => outcome.errors.push(error),
            }
        }
        let (waiting, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| self.devices.lacks(entry));
        self.missing = waiting.iter().filter_map(Entry::device).cloned().collect();
        let failed = outcome.failed(self.devices.put(kernel, &entries), entries.len());
        for (_, entry) in entries.into_iter().enumerate().filter(|(at, _)| !failed.contains(at)) {
            self.created(entry, outcome);
        }
        for (from, to) in elsewhere {
            outcome.hand_over(from.as_ref(), Some(&to));
            self.created(to, outcome);
        }
        false
    }

    fn created(&mut self, entry: Entry, outcome: &mut Outcome) {
        outcome.done += 1;
        let key = entry.key();
        if self.damaged.remove(&key) {
            outcome.repaired.push(key.clone());
        }
        self.claims.delta.is(key, entry);
    }

    fn remove(&mut self, kernel: &mut dyn Kernel, outcome: &mut Outcome) {
        let doomed = self.claims.delta.pending().filter_map(|step| match step {
            Step::Delete(_, entry) => Some(entry.clone()),
            Step::Create(..) | Step::Replace(..) => None,
        });
        let mut doomed: Vec<Entry> = doomed.collect();
        doomed.reverse();
        if !outcome.errors.is_empty() {
            // What replaces them is not complete: the tunnels that go, and what hangs on them, stay for now.
            let claims = &self.claims;
            let going = |device: &Name| {
                claims.delta.actual(&Key::Tunnel(device.clone())).is_some() && !claims.wants_tunnel(device)
            };
            doomed.retain(|entry| !entry.device().is_some_and(going));
        }
        let (elsewhere, doomed): (Vec<_>, Vec<_>) = doomed.into_iter().partition(|entry| entry.key().is_user_space());
        let (tunnels, entries): (Vec<_>, Vec<_>) =
            doomed.into_iter().partition(|entry| matches!(entry, Entry::Tunnel(_)));
        let failed = outcome.failed(self.devices.delete(kernel, &entries), entries.len());
        for (_, entry) in entries.iter().enumerate().filter(|(at, _)| !failed.contains(at)) {
            self.removed_by_us(entry, outcome);
        }
        for entry in &elsewhere {
            outcome.hand_over(Some(entry), None);
            self.removed_by_us(entry, outcome);
        }
        for entry in tunnels {
            let Entry::Tunnel(tunnel) = &entry else { continue };
            match self.devices.delete_tunnel(kernel, tunnel) {
                Ok(()) => self.removed_by_us(&entry, outcome),
                Err(error) => outcome.errors.push(error),
            }
        }
    }

    fn removed_by_us(&mut self, entry: &Entry, outcome: &mut Outcome) {
        outcome.done += 1;
        self.claims.delta.is_gone(&entry.key());
    }
}

fn key_of<'a>(step: Step<'a, Key, Entry>) -> &'a Key {
    let (Step::Create(key, _) | Step::Replace(key, ..) | Step::Delete(key, _)) = step;
    key
}

impl Outcome {
    /// Keeps why some of `count` entries were refused, and returns which.
    fn failed(
        &mut self,
        result: podwire_kernel::Result<Vec<(usize, podwire_kernel::Error)>>,
        count: usize,
    ) -> HashSet<usize> {
        match result {
            Ok(refused) => refused.into_iter().map(|(at, error)| (self.errors.push(error), at).1).collect(),
            // It is not known which were carried out.
            Err(error) => {
                self.errors.push(error);
                (0..count).collect()
            }
        }
    }

    /// Leaves an entry that is not the kernel's to the agent.
    fn hand_over(&mut self, from: Option<&Entry>, to: Option<&Entry>) {
        if let Some(Entry::Script(script)) = from {
            self.commands.extend(script.stop.clone());
        }
        match (from, to) {
            (_, Some(Entry::Script(script))) => self.commands.extend(script.start.clone()),
            (_, Some(Entry::Forward { destination, to })) => self.forwards.push((*destination, Some(*to))),
            (Some(Entry::Forward { destination, .. }), None) => self.forwards.push((*destination, None)),
            _ => {}
        }
    }
}
