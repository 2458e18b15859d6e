//! extension: the administrator's own commands carry the packets. See README.md.

use podwire_model::{Family, Lease, Name};

use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Command, Entry, Peer, Script, Site, Uplink},
};

/// The value of `Backend.Type`.
pub const NAME: &str = "extension";

/// The commands, as they were written.
#[derive(Debug)]
struct Extension {
    before: Option<String>,
    after: Option<String>,
    shutdown: Option<String>,
    add: Option<String>,
    remove: Option<String>,
}

pub(super) fn configure(fields: &mut Fields) -> Result<Box<dyn Backend>, Error> {
    let mut line = |name| {
        let line = fields.take::<String>(name)?;
        Ok::<_, Error>(line.filter(|line| !line.trim().is_empty()))
    };
    Ok(Box::new(Extension {
        before: line("PreStartupCommand")?,
        after: line("PostStartupCommand")?,
        shutdown: line("ShutdownCommand")?,
        add: line("SubnetAddCommand")?,
        remove: line("SubnetRemoveCommand")?,
    }))
}

fn command(line: Option<&String>, environment: &[(&'static str, String)], input: &str) -> Option<Command> {
    Some(Command { line: line?.clone(), environment: environment.to_vec(), input: input.to_owned() })
}

fn script(name: Name, start: Option<Command>, stop: Option<Command>) -> Option<Entry> {
    (start.is_some() || stop.is_some()).then_some(Entry::Script(Script { name, start, stop }))
}

/// Names of the variables for a range and an address of a family.
const fn names(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("SUBNET", "PUBLIC_IP"),
        Family::V6 => ("IPV6SUBNET", "PUBLIC_IPV6"),
    }
}

impl Backend for Extension {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        uplink.mtu
    }

    /// What `PreStartupCommand` printed, as a JSON string: peers' commands get it on their standard input.
    fn lease_data(&self, site: &Site) -> String {
        let printed = site.prepared.as_deref().filter(|_| self.before.is_some());
        printed.map_or_else(|| "null".to_owned(), |text| serde_json::Value::from(text.trim()).to_string())
    }

    fn local(&self, site: &Site) -> Vec<Entry> {
        let (range, address) = names(site.family());
        let environment = [
            ("NETWORK", site.network.to_string()),
            (range, site.subnet.to_string()),
            (address, site.public_ip.to_string()),
        ];
        let start = command(self.after.as_ref(), &environment, "");
        script("".into(), start, command(self.shutdown.as_ref(), &environment, "")).into_iter().collect()
    }

    fn peer(&self, site: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
        let Lease { node, subnet, public_ip, backend_data, .. } = peer.lease;
        let input: Option<String> = serde_json::from_str(backend_data).map_err(|error| {
            let problem = format!("backend data: {backend_data}: {error}");
            Error::Lease { node: node.to_string(), problem }
        })?;
        let (range, address) = names(site.family());
        let environment = [(range, subnet.to_string()), (address, public_ip.to_string())];
        let input = input.unwrap_or_default();
        let start = command(self.add.as_ref(), &environment, &input);
        let stop = command(self.remove.as_ref(), &environment, &input);
        Ok(script(node.clone(), start, stop).into_iter().collect())
    }

    fn prepare(&self) -> Option<Command> {
        command(self.before.as_ref(), &[], "")
    }

    fn leaves_routes_to_others(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use podwire_kernel::route::FakeRoute;

    use super::*;
    use crate::Overlay;

    fn overlay() -> Overlay {
        let json = r#"{"Type": "extension", "PreStartupCommand": "make-key", "PostStartupCommand": "post $SUBNET",
            "ShutdownCommand": "bye", "SubnetAddCommand": "add $SUBNET $PUBLIC_IP", "SubnetRemoveCommand": "del $SUBNET"}"#;
        let backend = super::super::tests::configured(json).unwrap();
        assert_eq!(backend.prepare().unwrap().line, "make-key");
        let site = super::super::tests::site(1);
        Overlay::new(backend, Site { prepared: Some("my \"key\"\n".into()), ..site }).unwrap()
    }

    #[test]
    fn commands_are_told_once_for_what_comes_and_what_goes() {
        let mut overlay = overlay();
        assert_eq!(&*overlay.lease().backend_data, r#""my \"key\"""#);
        let peer = Lease {
            node: "node2".into(),
            subnet: "10.244.2.0/24".parse().unwrap(),
            public_ip: [172, 25, 2, 2].into(),
            backend: NAME.into(),
            backend_data: r#""their key""#.into(),
        };
        let moved = Lease { public_ip: [172, 25, 2, 9].into(), ..peer.clone() };
        let mut kernel = FakeRoute::new();
        let mut told = |overlay: &mut Overlay| {
            let commands = overlay.apply(&mut kernel).unwrap().commands;
            commands
                .iter()
                .map(|command| (command.words(|_| None).join(" "), command.input.clone()))
                .collect::<Vec<_>>()
        };
        let line = |line: &str, input: &str| (line.to_owned(), input.to_owned());
        overlay.set_peer(&peer).unwrap();
        let expected = [line("post 10.244.1.0/24", ""), line("add 10.244.2.0/24 172.25.2.2", "their key")];
        assert_eq!(told(&mut overlay), expected);
        assert_eq!(told(&mut overlay), []);
        overlay.set_peer(&moved).unwrap();
        let expected = [line("del 10.244.2.0/24", "their key"), line("add 10.244.2.0/24 172.25.2.9", "their key")];
        assert_eq!(told(&mut overlay), expected);
        overlay.remove_peer(&"node2".into());
        assert_eq!(told(&mut overlay), [line("del 10.244.2.0/24", "their key")]);
        assert_eq!(overlay.farewell().map(|command| command.line.as_str()).collect::<Vec<_>>(), ["bye"]);
    }

    #[test]
    fn data_that_is_no_text_is_refused() {
        let peer = overlay().lease();
        let broken = Lease {
            node: "node3".into(),
            public_ip: [172, 25, 2, 3].into(),
            subnet: "10.244.3.0/24".parse().unwrap(),
            backend_data: "{}".into(),
            ..peer
        };
        let message = overlay().set_peer(&broken).unwrap_err().to_string();
        assert!(message.starts_with("node node3: backend data: {}: "), "{message}");
    }
}
