//! What happens in the kernel, whoever does it.

use super::*;

impl Overlay {
    /// Takes in that something in the kernel is different, whoever did it; this overlay's own doing is recognised.
    ///
    /// The cost does not depend on the number of peers, except for a route of the underlay when the backend asks for
    /// paths.
    pub fn changed(&mut self, change: &Change) -> Effect {
        let uplink = self.concerns_uplink(change);
        let mut work = match change {
            Change::Removed(removed) => self.note_removed(removed),
            Change::Link(link) => self.note_link(link),
            _ => self.note_entry(change),
        };
        if let Change::Route(route) | Change::Removed(Removed::Route(route)) = change {
            work |= self.note_underlay(|address| route.destination.contains(address));
        }
        Effect { work, uplink }
    }

    fn concerns_uplink(&self, change: &Change) -> bool {
        let uplink = &self.site.uplink;
        match change {
            Change::Link(link) => {
                link.index == uplink.index && (link.mtu, link.name.as_str()) != (uplink.mtu, &*uplink.name)
            }
            Change::Removed(Removed::Link(index)) => *index == uplink.index,
            Change::Removed(Removed::Address(gone)) => gone.device == uplink.index && gone.net.addr() == uplink.address,
            Change::Removed(Removed::Anything) => true,
            _ => false,
        }
    }

    fn note_removed(&mut self, removed: &Removed) -> bool {
        let (missed, reread) = match removed {
            Removed::Anything => (true, true),
            Removed::Link(index) => (false, self.devices.is_tunnel(*index)),
            // Its routes are gone without a word of each.
            Removed::LinkDown(index) => (false, self.devices.is_tunnel(*index) || self.leads_to_peers(*index)),
            Removed::Address(gone) => {
                let missed = self.note_gone(removed);
                // With its last IPv4 address a device loses its routes, and the kernel does not say which.
                (missed, missed || self.leads_to_peers(gone.device))
            }
            Removed::Route(_) | Removed::Neighbour(_) | Removed::Fdb(_) => (self.note_gone(removed), false),
        };
        if reread {
            if self.state == Knowledge::Current {
                self.state = Knowledge::Stale;
            }
            self.note_underlay(|_| true);
        }
        missed || reread
    }

    /// Whether routes to peers leave by this device of the machine's own.
    fn leads_to_peers(&self, index: u32) -> bool {
        index == self.site.uplink.index || self.devices.is_on_a_path(index)
    }

    fn note_gone(&mut self, removed: &Removed) -> bool {
        let Some(key) = self.devices.key_of(removed) else { return false };
        let delta = &mut self.claims.delta;
        if let Removed::Route(gone) = removed
            && !delta.actual(&key).is_some_and(|entry| self.devices.is_device(entry, gone.device))
        {
            return false;
        }
        // What this overlay removed itself is known to be gone already.
        let missed = delta.actual(&key).is_some() && delta.desired(&key).is_some();
        delta.is_gone(&key);
        if missed {
            self.damaged.insert(key);
        }
        missed
    }

    fn note_link(&mut self, link: &Link) -> bool {
        let key = Key::Tunnel(link.name.as_str().into());
        let delta = &mut self.claims.delta;
        if let Some(Entry::Tunnel(known)) = delta.actual(&key)
            && self.devices.is_tunnel(link.index)
        {
            let now = Tunnel { mac: link.mac, mtu: link.mtu, up: link.up, ..known.clone() };
            return self.note_now(key, Some(Entry::Tunnel(now)));
        }
        if link.up && self.missing.contains(link.name.as_str()) {
            self.state = Knowledge::Stale;
            return true;
        }
        // What could not be done while a device was down may work now.
        link.up && self.leads_to_peers(link.index) && !self.is_settled()
    }

    fn note_entry(&mut self, change: &Change) -> bool {
        match self.devices.read(&self.site, change) {
            Some((key, now)) => self.note_now(key, now),
            None => false,
        }
    }

    /// Takes in what there is in the place of `key`; returns whether that is wrong.
    fn note_now(&mut self, key: Key, now: Option<Entry>) -> bool {
        let delta = &mut self.claims.delta;
        let Some(desired) = delta.desired(&key) else { return false };
        let wrong = now.as_ref() != Some(desired);
        if !wrong {
            self.damaged.remove(&key);
        } else if delta.actual(&key) == Some(desired) {
            self.damaged.insert(key.clone());
        }
        match now {
            Some(now) => delta.is(key, now),
            None => delta.is_gone(&key),
        }
        wrong
    }

    /// Has the paths looked up again of the peers whose address `concerned` says; returns whether there are any.
    fn note_underlay(&mut self, concerned: impl Fn(&IpAddr) -> bool) -> bool {
        if !self.backend.needs_path() {
            return false;
        }
        let concerned =
            self.peers.iter().filter(|(_, peer)| peer.standing != Standing::Kept && concerned(&peer.lease.public_ip));
        let before = self.unresolved.len();
        self.unresolved.extend(concerned.map(|(name, _)| name.clone()));
        self.unresolved.len() > before
    }
}
