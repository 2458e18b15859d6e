use std::{fmt::Display, net::IpAddr, str::FromStr};

use podwire_model::{ObjectName, Problem, Protocol};

use super::Read;

/// What is done with a bad entry of a list.
pub const LEFT_OUT: &str = "it is left out";

/// Reads the fields of one object and collects what is wrong with them.
pub struct Reader {
    kind: &'static str,
    object: ObjectName,
    /// With each, how many more there are like it.
    problems: Vec<(Problem, usize)>,
}

impl Reader {
    /// Reads an object of `kind`.
    pub fn new(kind: &'static str, object: &ObjectName) -> Self {
        Self { kind, object: object.clone(), problems: Vec::new() }
    }

    /// What came of it.
    pub fn done<T>(self, value: Option<T>) -> Read<T> {
        let text = |(mut problem, more): (Problem, usize)| {
            if more > 0 {
                problem.what += &format!(" (and {more} more like it)");
            }
            problem
        };
        Read { value, problems: self.problems.into_iter().map(text).collect() }
    }

    /// Notes a problem. Of many of one kind in one field only the first is kept, and their number.
    pub fn problem(&mut self, field: &'static str, what: String, done: &'static str) {
        match self.problems.iter_mut().find(|(known, _)| known.field == field && known.done == done) {
            Some((_, more)) => *more += 1,
            None => {
                let object = self.object.clone();
                self.problems.push((Problem { kind: self.kind, object, field, what, done }, 0));
            }
        }
    }

    /// A value from its text, unless that is something else.
    pub fn parse<T: FromStr<Err: Display>>(&mut self, field: &'static str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.problem(field, format!("{text:?}: {error}"), LEFT_OUT)).ok()
    }

    /// An address; an IPv4 address written as an IPv6 one counts as what it means.
    pub fn address(&mut self, field: &'static str, text: &str) -> Option<IpAddr> {
        self.parse(field, text).map(|address: IpAddr| address.to_canonical())
    }

    /// An address that a packet can be sent to from somewhere else: those that the API's validation calls special are
    /// left out.
    pub fn usable_address(&mut self, field: &'static str, text: &str) -> Option<IpAddr> {
        let address = self.address(field, text)?;
        let special = match &address {
            _ if address.is_unspecified() => "unspecified",
            _ if address.is_loopback() => "a loopback address",
            _ if address.is_multicast() => "a multicast address",
            IpAddr::V4(v4) if v4.is_link_local() => "link-local",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "link-local",
            _ => return Some(address),
        };
        self.problem(field, format!("{address} is {special}"), LEFT_OUT);
        None
    }

    /// The usable ones of addresses.
    pub fn addresses<S: AsRef<str>>(&mut self, field: &'static str, texts: impl Iterator<Item = S>) -> Vec<IpAddr> {
        texts.filter_map(|text| self.usable_address(field, text.as_ref())).collect()
    }

    /// A port number.
    pub fn port(&mut self, field: &'static str, number: i32, otherwise: &'static str) -> Option<u16> {
        let valid = u16::try_from(number).ok().filter(|number| *number != 0);
        if valid.is_none() {
            self.problem(field, format!("{number} is not a port: 1 to 65535"), otherwise);
        }
        valid
    }

    /// A protocol; TCP if nothing is said.
    pub fn protocol(&mut self, field: &'static str, text: Option<&str>) -> Option<Protocol> {
        self.parse(field, text.filter(|text| !text.is_empty()).unwrap_or("TCP"))
    }
}
