//! The part of Go's template language that record templates use: values and two functions in `{{ … }}`. Everything else
//! is refused.

use std::{iter::Peekable, str::Chars};

/// A template.
#[derive(Debug, PartialEq)]
pub(super) struct Text(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Literal(String),
    Value(Value),
}

/// What stands in the braces.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Name,
    Zone,
    Type,
    Class,
    Remote,
    /// `.Group.NAME` or `index .Group "NAME"`.
    Group(String),
    /// `index .Match NUMBER`.
    Match(usize),
    Literal(String),
    /// `parseInt VALUE BASE BITS`.
    ParseInt(Box<Value>, u32, u32),
}

/// What values stand for in an answer.
pub(super) trait Source {
    /// The text of a value that is no function; `None` if there is none.
    fn text(&self, value: &Value) -> Option<String>;
}

/// What is wrong with a template, and at which character.
pub(super) type Complaint = (usize, String);

impl Text {
    pub(super) fn parse(text: &str) -> Result<Self, Complaint> {
        let mut parts = Vec::new();
        let mut parser = Parser { rest: text.chars().peekable(), at: 0 };
        let mut trim = false;
        loop {
            let (mut literal, open) = parser.literal();
            if std::mem::take(&mut trim) {
                literal = literal.trim_start().to_owned();
            }
            if let Some(Action { trims: true, .. }) = open {
                literal = literal.trim_end().to_owned();
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(literal));
            }
            let Some(open) = open else { return Ok(Self(parts)) };
            let (value, trims) = parser.action(&open)?;
            parts.extend(value.map(Part::Value));
            trim = trims;
        }
    }

    /// The values in it, also those within functions.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Value(Value::ParseInt(inner, ..)) => Some(&**inner),
            Part::Value(value) => Some(value),
        })
    }

    /// The text with every value in its place.
    ///
    /// # Errors
    /// Which value is not there, or is no number.
    pub(super) fn render(&self, source: &dyn Source) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Value(value) => text.push_str(&value.render(source)?),
            }
        }
        Ok(text)
    }
}

impl Value {
    fn render(&self, source: &dyn Source) -> Result<String, String> {
        match self {
            Self::Literal(text) => Ok(text.clone()),
            Self::ParseInt(inner, base, bits) => {
                let text = inner.render(source)?;
                let number = u64::from_str_radix(&text, *base).ok().filter(|_| !text.starts_with('+'));
                let number = number.filter(|number| *bits == 64 || number >> bits == 0);
                number.map(|number| number.to_string()).ok_or_else(|| format!("{text:?} is no number of {bits} bits"))
            }
            value => source.text(value).ok_or_else(|| format!("there is no {value:?}")),
        }
    }
}

/// `{{` and whether a dash follows.
struct Action {
    at: usize,
    trims: bool,
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    /// How many characters were taken.
    at: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        self.at += usize::from(self.rest.peek().is_some());
        self.rest.next()
    }

    fn looking_at(&self, text: &str) -> bool {
        let mut rest = self.rest.clone();
        text.chars().all(|wanted| rest.next() == Some(wanted))
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.looking_at(text);
        if found {
            for _ in text.chars() {
                self.next();
            }
        }
        found
    }

    /// The text before the next action, and the action.
    fn literal(&mut self) -> (String, Option<Action>) {
        let mut literal = String::new();
        loop {
            let at = self.at;
            if self.take("{{") {
                let trims = self.looking_at("- ") && self.take("-");
                return (literal, Some(Action { at, trims }));
            }
            match self.next() {
                Some(next) => literal.push(next),
                None => return (literal, None),
            }
        }
    }

    /// The value up to `}}`, and whether blanks after it go away. A comment has no value.
    fn action(&mut self, open: &Action) -> Result<(Option<Value>, bool), Complaint> {
        self.blanks();
        let value = if self.take("/*") {
            while !self.take("*/") {
                self.next().ok_or_else(|| (open.at, "this comment is never closed".to_owned()))?;
            }
            None
        } else {
            Some(self.call()?)
        };
        self.blanks();
        let trims = self.looking_at("-}}") && self.take("-");
        if self.take("}}") {
            return Ok((value, trims));
        }
        match self.rest.peek() {
            None => Err((open.at, "these braces are never closed".to_owned())),
            Some(_) => Err((self.at, "expected \"}}\"".to_owned())),
        }
    }

    fn blanks(&mut self) {
        while self.rest.peek().is_some_and(|next| next.is_whitespace()) {
            self.next();
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(next) = self.rest.peek().filter(|next| next.is_alphanumeric() || **next == '_') {
            word.push(*next);
            self.next();
        }
        word
    }

    /// A function with its arguments, or a value.
    fn call(&mut self) -> Result<Value, Complaint> {
        self.blanks();
        let at = self.at;
        if !self.rest.peek().is_some_and(|next| next.is_alphabetic()) {
            return self.value();
        }
        match self.word().as_str() {
            "index" => {
                self.blanks();
                let list = self.at;
                match [".Match", ".Group"].into_iter().find(|list| self.take(list)) {
                    Some(".Match") => Ok(Value::Match(self.number(usize::MAX as u64)? as usize)),
                    Some(_) => match self.value()? {
                        Value::Literal(name) => Ok(Value::Group(name)),
                        _ => Err((list, "index .Group needs the group's name in quotes".to_owned())),
                    },
                    None => Err((list, "index needs .Match or .Group".to_owned())),
                }
            }
            "parseInt" => {
                let inner = self.value()?;
                let (base, bits) = (self.number(36)?, self.number(64)?);
                // Go takes these for a base from the text's prefix, and for 64 bits.
                if base < 2 || bits == 0 {
                    return Err((at, "parseInt needs a base from 2 to 36 and from 1 to 64 bits".to_owned()));
                }
                Ok(Value::ParseInt(Box::new(inner), base as u32, bits as u32))
            }
            word => Err((at, format!("{word:?} is not supported in templates"))),
        }
    }

    fn value(&mut self) -> Result<Value, Complaint> {
        self.blanks();
        let at = self.at;
        if self.take("(") {
            let value = self.call()?;
            self.blanks();
            return if self.take(")") { Ok(value) } else { Err((at, "this parenthesis is never closed".to_owned())) };
        }
        if let Some(quote) = self.rest.peek().copied().filter(|next| ['"', '`'].contains(next)) {
            self.next();
            let mut text = String::new();
            loop {
                match self.next() {
                    None => return Err((at, "this quote is never closed".to_owned())),
                    Some(next) if next == quote => return Ok(Value::Literal(text)),
                    Some('\\') if quote == '"' => return Err((self.at - 1, "no backslashes in quotes".to_owned())),
                    Some(next) => text.push(next),
                }
            }
        }
        if !self.take(".") {
            return Err((at, "expected a value such as .Name".to_owned()));
        }
        let field = self.word();
        let value = match field.as_str() {
            "Name" => Value::Name,
            "Zone" => Value::Zone,
            "Type" => Value::Type,
            "Class" => Value::Class,
            "Remote" => Value::Remote,
            "Group" if self.take(".") => Value::Group(self.word()),
            "Question" if self.take(".Name") => Value::Name,
            _ => return Err((at, format!("\".{field}\" is not supported in templates"))),
        };
        match self.rest.peek() {
            Some('.') => Err((self.at, "a field of a text".to_owned())),
            _ => Ok(value),
        }
    }

    fn number(&mut self, max: u64) -> Result<u64, Complaint> {
        self.blanks();
        let at = self.at;
        let number = self.word().parse().ok().filter(|number| *number <= max);
        number.ok_or_else(|| (at, format!("expected a number of at most {max}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Names;

    impl Source for Names {
        fn text(&self, value: &Value) -> Option<String> {
            Some(match value {
                Value::Match(7) => return None,
                Value::Match(index) => format!("m{index}"),
                Value::Group(name) if name == "hex" => "ff".to_owned(),
                Value::Group(name) => format!("g-{name}"),
                other => format!("{other:?}").to_lowercase(),
            })
        }
    }

    #[test]
    fn values_take_their_places() {
        for (text, wanted) in [
            ("plain } { text", "plain } { text"),
            ("{{ .Name }} 60 {{.Class}} {{ .Type}}", "name 60 class type"),
            ("a {{- /* note */ -}} b", "ab"),
            ("a {{- .Zone -}} b{{ .Remote -}} ", "azonebremote"),
            ("{{ .Group.a1 }}{{ index .Group \"b\" }}{{ index .Match 2 }}", "g-a1g-bm2"),
            ("{{ parseInt .Group.hex 16 8 }}.{{ parseInt (index .Group `hex`) 16 64 }}", "255.255"),
            ("{{ \"x}}y\" }}{{ .Question.Name }}{{ (.Name) }}", "x}}ynamename"),
        ] {
            assert_eq!(Text::parse(text).unwrap().render(&Names), Ok(wanted.to_owned()), "{text}");
        }
        for (text, wanted) in [
            ("{{ index .Match 7 }}", "there is no Match(7)"),
            ("{{ parseInt .Name 10 8 }}", "\"name\" is no number of 8 bits"),
            ("{{ parseInt .Group.hex 16 7 }}", "\"ff\" is no number of 7 bits"),
        ] {
            assert_eq!(Text::parse(text).unwrap().render(&Names), Err(wanted.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_where_it_stands() {
        for (text, at, what) in [
            ("a {{ if .Name }}", 5, "\"if\" is not supported in templates"),
            ("{{ .Message }}", 3, "\".Message\" is not supported in templates"),
            ("{{ .Group }}", 3, "\".Group\" is not supported in templates"),
            ("{{ .Name | printf }}", 9, "expected \"}}\""),
            ("x{{ .Name", 1, "these braces are never closed"),
            ("{{ }}", 3, "expected a value such as .Name"),
            ("{{ $x }}", 3, "expected a value such as .Name"),
            ("{{ index .Name 1 }}", 9, "index needs .Match or .Group"),
            ("{{ index .Group 1 }}", 16, "expected a value such as .Name"),
            ("{{ index .Match x }}", 16, "expected a number of at most 18446744073709551615"),
            ("{{ parseInt .Name 99 8 }}", 18, "expected a number of at most 36"),
            ("{{ parseInt .Name 0 8 }}", 3, "parseInt needs a base from 2 to 36 and from 1 to 64 bits"),
            ("{{ .Name.x }}", 8, "a field of a text"),
            ("{{ \"x }}", 3, "this quote is never closed"),
            ("{{ /* }}", 0, "this comment is never closed"),
            ("{{ (.Name }}", 3, "this parenthesis is never closed"),
        ] {
            assert_eq!(Text::parse(text), Err((at, what.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_template_is_survived(words in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", " ", ".Name", ".Group", ".", "index", ".Match", "1", "x", "\"", "`", "(", ")", "parseInt", "/*", "*/", "ä", "{", "}",
        ]), 0..30)) {
            let text = words.concat();
            match Text::parse(&text) {
                Ok(template) => drop(template.render(&Names)),
                Err((at, _)) => prop_assert!(at <= text.chars().count()),
            }
        }
    }
}
