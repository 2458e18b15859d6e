//! Records in the text form of zone files (RFC 1035 5.1): entries over several lines in parentheses, comments, quotes,
//! escapes, `@`, `$ORIGIN`, `$TTL`, TTLs with units as in `1h30m`, data of unknown types (RFC 3597).

use bytes::Bytes;
use domain::{
    base::{
        Message, MessageBuilder, Ttl, UnknownRecordData,
        iana::{Class, Rtype},
        scan::IterScanner,
    },
    rdata::ZoneRecordData,
};

use crate::message::{DnsName, Record, owned_record};

/// The TTL of a record where nothing says another, seconds.
const DEFAULT_TTL: u32 = 3600;
/// The largest TTL (RFC 2181 8), seconds.
const MAX_TTL: u32 = i32::MAX.unsigned_abs();

/// Which words of a type's data are names that may be relative.
const NAMES: &[(Rtype, &[usize])] = &[
    (Rtype::NS, &[0]),
    (Rtype::CNAME, &[0]),
    (Rtype::DNAME, &[0]),
    (Rtype::PTR, &[0]),
    (Rtype::MB, &[0]),
    (Rtype::MG, &[0]),
    (Rtype::MR, &[0]),
    (Rtype::MD, &[0]),
    (Rtype::MF, &[0]),
    (Rtype::NSEC, &[0]),
    (Rtype::MX, &[1]),
    (Rtype::SOA, &[0, 1]),
    (Rtype::MINFO, &[0, 1]),
    (Rtype::RP, &[0, 1]),
    (Rtype::SRV, &[3]),
    (Rtype::NAPTR, &[5]),
    (Rtype::RRSIG, &[7]),
];

/// The one record that a text spells, of any class; relative names end at the root.
///
/// # Errors
/// `line:column: what` is wrong.
pub(crate) fn one(text: &str) -> Result<Record, String> {
    let mut reader = Reader::new(DnsName::root_bytes());
    let records = reader.read(text.trim_start())?;
    let [record] =
        <[Record; 1]>::try_from(records).map_err(|found| format!("{} records, expected one", found.len()))?;
    Ok(record)
}

/// The records of a zone file of class IN whose relative names end at `origin`.
///
/// # Errors
/// `line:column: what` of the first thing that is wrong. `$INCLUDE` and `$GENERATE` are refused.
pub(crate) fn zone(text: &[u8], origin: DnsName) -> Result<Vec<Record>, String> {
    let text = str::from_utf8(text).map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to()))?;
    let mut reader = Reader::new(origin);
    reader.only_class_in = true;
    reader.read(text)
}

/// A word of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    /// Without quotes, with escapes.
    text: String,
    quoted: bool,
    line: usize,
    column: usize,
}

impl Word {
    fn error(&self, message: impl std::fmt::Display) -> String {
        format!("{}:{}: {message}", self.line, self.column)
    }
}

/// The words of an entry.
#[derive(Debug, Default)]
struct Entry {
    /// It begins with a blank: the owner is that of the entry before.
    indented: bool,
    words: Vec<Word>,
}

struct Reader {
    origin: DnsName,
    owner: Option<DnsName>,
    /// Of `$TTL`.
    default_ttl: Option<u32>,
    last_ttl: u32,
    last_class: Class,
    only_class_in: bool,
}

impl Reader {
    fn new(origin: DnsName) -> Self {
        let (last_ttl, last_class) = (DEFAULT_TTL, Class::IN);
        Self { origin, owner: None, default_ttl: None, last_ttl, last_class, only_class_in: false }
    }

    fn read(&mut self, text: &str) -> Result<Vec<Record>, String> {
        let mut lexer = Lexer { rest: text.chars().peekable(), line: 1, column: 1 };
        let mut records = Vec::new();
        while let Some(entry) = lexer.entry()? {
            records.extend(self.entry(entry)?);
        }
        Ok(records)
    }

    fn entry(&mut self, Entry { indented, words }: Entry) -> Result<Option<Record>, String> {
        let mut words = words.into_iter().peekable();
        let Some(first) = words.peek().cloned() else { return Ok(None) };
        if !indented {
            words.next();
            if first.text.starts_with('$') && !first.quoted {
                let argument = words.next().ok_or_else(|| first.error("expected a word after this"))?;
                match first.text.to_ascii_uppercase().as_str() {
                    "$ORIGIN" => self.origin = self.name(&argument)?,
                    "$TTL" => {
                        self.default_ttl = Some(ttl(&argument.text).ok_or_else(|| argument.error("expected a TTL"))?)
                    }
                    _ => return Err(first.error(format!("{} is not supported", first.text))),
                }
                return match words.next() {
                    Some(word) => Err(word.error("unexpected word")),
                    None => Ok(None),
                };
            }
            self.owner = Some(self.name(&first)?);
        }
        let owner = self.owner.clone().ok_or_else(|| first.error("no owner before this line"))?;
        let mut own_ttl = None;
        let mut class = None;
        let rtype = loop {
            let Some(word) = words.next() else { return Err(first.error("expected a type after this name")) };
            match ttl(&word.text) {
                Some(ttl) if own_ttl.is_none() => own_ttl = Some(ttl),
                _ => match (word.text.to_ascii_uppercase().parse(), class) {
                    (Ok(found), None) if [Class::IN, Class::CH, Class::HS].contains(&found) => class = Some(found),
                    _ => break self.rtype(&word)?,
                },
            }
        };
        self.last_class = class.unwrap_or(self.last_class);
        if self.only_class_in && self.last_class != Class::IN {
            return Err(first.error(format!("class {}, expected IN", self.last_class)));
        }
        self.last_ttl = own_ttl.or(self.default_ttl).unwrap_or(self.last_ttl);
        let data = self.data(rtype, words.collect(), &first)?;
        let record = domain::base::Record::new(owner, self.last_class, Ttl::from_secs(self.last_ttl), data);
        owned(&record).map(Some).ok_or_else(|| first.error("the record is too long"))
    }

    fn rtype(&self, word: &Word) -> Result<Rtype, String> {
        let rtype = word.text.to_ascii_uppercase().parse().ok().filter(|_| !word.quoted);
        rtype.ok_or_else(|| word.error(format!("{:?} is no type", word.text)))
    }

    /// The data that the words spell.
    fn data(&self, rtype: Rtype, mut words: Vec<Word>, first: &Word) -> Result<ZoneRecordData<Bytes, DnsName>, String> {
        let place = words.first().unwrap_or(first).clone();
        let wrong = |error: &dyn std::fmt::Display| place.error(format!("{rtype}: {error}"));
        let unknown = words.first().is_some_and(|word| word.text == "\\#" && !word.quoted);
        if unknown {
            words.remove(0);
        } else if let Some((_, names)) = NAMES.iter().find(|(known, _)| *known == rtype) {
            for index in *names {
                if let Some(word) = words.get_mut(*index) {
                    word.text = self.name(word)?.fmt_with_dot().to_string();
                }
            }
            // The times of a SOA record may have units too.
            for word in words.iter_mut().skip(3).filter(|_| rtype == Rtype::SOA) {
                word.text = ttl(&word.text).map_or(word.text.clone(), |seconds| seconds.to_string());
            }
        }
        let mut scanner = IterScanner::<_, Bytes>::new(words.iter().map(|word| word.text.as_str()));
        let data = match unknown {
            true => UnknownRecordData::scan_without_marker(rtype, &mut scanner).map(ZoneRecordData::Unknown),
            false => ZoneRecordData::scan(rtype, &mut scanner),
        };
        let data = data.map_err(|error| wrong(&error))?;
        if !scanner.is_exhausted() {
            return Err(wrong(&"more words than the type has"));
        }
        Ok(data)
    }

    /// A name, below the origin unless a dot ends it.
    fn name(&self, word: &Word) -> Result<DnsName, String> {
        if word.text == "@" && !word.quoted {
            return Ok(self.origin.clone());
        }
        let wrong =
            |error: &dyn std::fmt::Display| word.error(format!("{:?} is not a domain name: {error}", word.text));
        let backslashes = word.text.trim_end_matches('.').bytes().rev().take_while(|byte| *byte == b'\\').count();
        let absolute = word.text.ends_with('.') && backslashes % 2 == 0;
        let text = match absolute {
            true => word.text.clone(),
            false if word.text.is_empty() => return Err(wrong(&"it is empty")),
            false if self.origin.is_root() => format!("{}.", word.text),
            false => format!("{}.{}", word.text, self.origin.fmt_with_dot()),
        };
        DnsName::bytes_from_str(&text).map_err(|error| wrong(&error))
    }
}

/// Seconds, or numbers with units: weeks, days, hours, minutes, seconds.
fn ttl(text: &str) -> Option<u32> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let mut total: u32 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|next: char| !next.is_ascii_digit()).unwrap_or(rest.len()));
        let mut tail = tail.chars();
        let unit = match tail.next().map(|unit| unit.to_ascii_lowercase()) {
            Some('w') => 604_800,
            Some('d') => 86_400,
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') | None => 1,
            Some(_) => return None,
        };
        total = total.checked_add(number.parse::<u32>().ok()?.checked_mul(unit)?)?;
        rest = tail.as_str();
    }
    (total <= MAX_TTL).then_some(total)
}

/// The record as answers hold it: through the form that it has in a message.
fn owned(record: &domain::base::Record<DnsName, ZoneRecordData<Bytes, DnsName>>) -> Option<Record> {
    let mut builder = MessageBuilder::new_vec().answer();
    builder.push(record).ok()?;
    let message = Message::from_octets(Bytes::from(builder.finish())).ok()?;
    owned_record(message.answer().ok()?.next()?.ok()?).ok()
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    column: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        if next == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(next)
    }

    fn here(&self) -> Word {
        Word { text: String::new(), quoted: false, line: self.line, column: self.column }
    }

    /// The next entry: a line, and more lines while a parenthesis is open. `None` at the end of the text.
    fn entry(&mut self) -> Result<Option<Entry>, String> {
        let Some(first) = self.rest.peek() else { return Ok(None) };
        let mut entry = Entry { indented: [' ', '\t'].contains(first), words: Vec::new() };
        let mut open: Vec<Word> = Vec::new();
        while let Some(next) = self.rest.peek().copied() {
            match next {
                '\n' => {
                    self.next();
                    if open.is_empty() {
                        return Ok(Some(entry));
                    }
                }
                ';' => {
                    while self.rest.peek().is_some_and(|next| *next != '\n') {
                        self.next();
                    }
                }
                '(' => {
                    open.push(self.here());
                    self.next();
                }
                ')' => {
                    open.pop().ok_or_else(|| self.here().error("this parenthesis closes nothing"))?;
                    self.next();
                }
                blank if blank.is_whitespace() => drop(self.next()),
                _ => entry.words.push(self.word()?),
            }
        }
        match open.pop() {
            Some(open) => Err(open.error("this parenthesis is never closed")),
            None => Ok(Some(entry)),
        }
    }

    fn word(&mut self) -> Result<Word, String> {
        let mut word = self.here();
        word.quoted = self.rest.peek() == Some(&'"');
        if word.quoted {
            self.next();
        }
        loop {
            let here = self.here();
            match self.rest.peek().copied() {
                None | Some('\n') if word.quoted => return Err(word.error("this quote is never closed")),
                Some('"') if word.quoted => {
                    self.next();
                    return Ok(word);
                }
                None => return Ok(word),
                Some(next) if !word.quoted && (next.is_whitespace() || "();\"".contains(next)) => return Ok(word),
                Some('\\') => {
                    let length = word.text.len();
                    word.text.extend(self.next());
                    let digits = self.rest.peek().is_some_and(char::is_ascii_digit);
                    for _ in 0..if digits { 3 } else { 1 } {
                        word.text.extend(self.rest.peek().copied().filter(|next| *next != '\n'));
                        self.rest.next_if(|next| *next != '\n');
                        self.column += 1;
                    }
                    let escaped = &word.text[length + 1..];
                    let good = match digits {
                        true => escaped.len() == 3 && escaped.parse::<u8>().is_ok(),
                        false => escaped.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !escaped.is_empty(),
                    };
                    if !good {
                        return Err(here.error("a backslash needs three digits up to 255 or a character after it"));
                    }
                }
                Some(next) => {
                    word.text.push(next);
                    self.next();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(record: &Record) -> String {
        record.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_record() {
        for (line, wanted) in [
            ("a.test. 60 IN A 10.0.0.1", "a.test. 60 IN A 10.0.0.1"),
            ("  A.test IN 60 A 10.0.0.1 ; c", "A.test. 60 IN A 10.0.0.1"),
            ("a.test A 10.0.0.1", "a.test. 3600 IN A 10.0.0.1"),
            ("a. 1h1m CH TXT b", "a. 3660 CH TXT \"b\""),
            ("a. 60 IN SOA ns.a hostmaster.a (1 60 1m 60 1m)", "a. 60 IN SOA ns.a. hostmaster.a. 1 60 60 60 60"),
            ("a. 60 MX 10 mx.a", "a. 60 IN MX 10 mx.a."),
            ("a. TXT \"one; two\" three\\\"\\059", "a. 3600 IN TXT \"one; two\" \"three\\\";\""),
            ("a\\.b\\032c. A 10.0.0.1", "a\\.b\\ c. 3600 IN A 10.0.0.1"),
            ("a. TYPE65280 \\# 2 abcd", "a. 3600 IN TYPE65280 \\# 2 ab cd"),
        ] {
            assert_eq!(one(line).as_ref().map(text), Ok(wanted.to_owned()), "{line}");
        }
    }

    #[test]
    fn complaints_name_line_and_column() {
        for (line, wanted) in [
            ("", "0 records, expected one"),
            ("a.", "1:1: expected a type after this name"),
            ("a. 60 60", "1:7: \"60\" is no type"),
            ("a. 60 IN A", "1:1: A: unexpected end of entry"),
            ("a. 60 IN A x", "1:12: A: expected IPv4 address"),
            ("a. A 10.0.0.1 2", "1:6: A: more words than the type has"),
            ("a. A 10.0.0.1\nb. A 10.0.0.1", "2 records, expected one"),
            ("$INCLUDE x", "1:1: $INCLUDE is not supported"),
            ("$TTL x", "1:6: expected a TTL"),
            ("$ORIGIN a b", "1:11: unexpected word"),
            ("a. TXT (\n\"b", "2:1: this quote is never closed"),
            ("a. TXT (\nb", "1:8: this parenthesis is never closed"),
            ("a. TXT b)", "1:9: this parenthesis closes nothing"),
            ("a. TXT b\\25", "1:9: a backslash needs three digits up to 255 or a character after it"),
            ("a..b TXT b", "1:1: \"a..b\" is not a domain name: empty label"),
        ] {
            assert_eq!(one(line), Err(wanted.to_owned()), "{line:?}");
        }
        assert_eq!(zone(b" A 10.0.0.1", DnsName::root_bytes()), Err("1:2: no owner before this line".to_owned()));
        assert_eq!(
            zone(b"a\nb CH A 10.0.0.1", DnsName::root_bytes()),
            Err("1:1: expected a type after this name".to_owned())
        );
        assert_eq!(zone(b"\nb CH A 10.0.0.1", DnsName::root_bytes()), Err("2:1: class CH, expected IN".to_owned()));
        assert_eq!(zone(b"a\xff", DnsName::root_bytes()), Err("byte 1 is not UTF-8".to_owned()));
    }

    #[test]
    fn origin_owner_and_ttl_go_on() {
        let file = b"@ 5 SOA ns mail.x. 1 2 3 4 5\n\tNS ns\n  NS @\n$TTL 1d\nns A 10.0.0.1\n$ORIGIN sub\n@ 7 MX 1 *.mx ; c\n\n A 10.0.0.2\n";
        let origin = DnsName::bytes_from_str("example.org").unwrap();
        let records: Vec<_> = zone(file, origin).unwrap().iter().map(text).collect();
        assert_eq!(
            records,
            [
                "example.org. 5 IN SOA ns.example.org. mail.x. 1 2 3 4 5",
                "example.org. 5 IN NS ns.example.org.",
                "example.org. 5 IN NS example.org.",
                "ns.example.org. 86400 IN A 10.0.0.1",
                "sub.example.org. 7 IN MX 1 *.mx.sub.example.org.",
                "sub.example.org. 86400 IN A 10.0.0.2",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[@$a-zA-Z0-9*.\\\\ \t\n;()\"-]{0,120}") {
            let _ = one(&text);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = zone(&bytes, DnsName::root_bytes());
        }

        #[test]
        fn any_words_are_survived(words in prop::collection::vec(prop::sample::select(vec![
            "$ORIGIN ", "$TTL ", "@ ", "a ", "a.b. ", "60 ", "IN ", "A ", "10.0.0.1 ", "AAAA ", "fd00::1 ", "MX ", "TXT ", "\"x ", "y\" ",
            "( ", ") ", "\n", "; c\n", "SOA ", "NS ", "CAA ", "SVCB ", "HTTPS ", "NAPTR ", "TYPE65280 ", "\\# 2 abcd ", "\\032", "\\", "NSEC ",
            "NSEC3 ", "DS ", "RRSIG ", "LOC ", "SSHFP ", "TLSA ", "OPT ", "TSIG ", "\"\" ", "ä ", "abcd== ", "20260101000000 ",
        ]), 0..40)) {
            if let Ok(records) = zone(words.concat().as_bytes(), DnsName::root_bytes()) {
                prop_assert!(records.len() <= words.len());
            }
        }

        #[test]
        fn any_data_is_survived(rtype in 0..300_u16, words in prop::collection::vec("[0-9]{1,3}|[a-zA-Z0-9.+/=:-]{1,12}|[A-Z]{1,6}", 0..8)) {
            let line = format!("a. {} {}", Rtype::from_int(rtype), words.join(" "));
            if let Ok(record) = one(&line) {
                prop_assert_eq!(record.rtype(), Rtype::from_int(rtype), "{}", line);
            }
        }
    }
}
