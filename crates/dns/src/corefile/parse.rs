//! From words to server blocks.

use std::time::Duration;

use super::{Block, Corefile, CorefileError, Directive, Loader, Position, Word, ZoneKey, expand::Expander, explain};

/// How deep braces may nest below a server block; CoreDNS needs two.
const MAX_DEPTH: usize = 8;

pub(super) fn corefile(text: &str, loader: &dyn Loader) -> Result<Corefile, CorefileError> {
    let mut parser = Parser { words: Expander::new(loader) };
    match parser.blocks(text) {
        Ok(blocks) => Ok(Corefile { blocks, imports: parser.words.imports }),
        Err(error) => Err(explain(&parser.words.imports, error)),
    }
}

struct Parser<'a> {
    words: Expander<'a>,
}

impl Parser<'_> {
    fn blocks(&mut self, text: &str) -> Result<Vec<Block>, CorefileError> {
        self.words.start(text)?;
        let mut blocks: Vec<Block> = Vec::new();
        while self.words.peek()?.is_some() {
            if !self.words.snippet()? {
                blocks.push(self.block()?);
            }
        }
        match blocks.is_empty() {
            true => Err(CorefileError {
                at: Position { file: 0, line: 1, column: 1 },
                message: "no server block, expected one such as \".:53 { … }\"".to_owned(),
            }),
            false => Ok(blocks),
        }
    }

    fn block(&mut self) -> Result<Block, CorefileError> {
        let mut keys = Vec::new();
        let mut last: Option<Word> = None;
        let open = loop {
            match self.words.next()? {
                Some(token) if token.is("{") => break token.word,
                Some(token) if token.is("}") => return Err(token.word.error("this brace closes nothing")),
                Some(token) if token.word.text.ends_with('{') => {
                    return Err(token.word.error("put a blank before the opening brace"));
                }
                Some(token) => {
                    for part in token.word.text.split(',').filter(|part| !part.is_empty()) {
                        keys.extend(ZoneKey::parse(&Word { text: part.to_owned(), at: token.word.at })?);
                    }
                    last = Some(token.word);
                }
                None => {
                    let word =
                        last.map(|word| word.error("expected \"{\" and directives after the zones of a server block"));
                    return Err(word.unwrap_or_else(|| unexpected_end(Position::default())));
                }
            }
        };
        if keys.is_empty() {
            return Err(open.error("a server block needs a zone before its brace, such as \".:53\""));
        }
        Ok(Block { keys, directives: self.body(&open, 0)? })
    }

    /// The lines up to the brace that closes the one at `open`.
    fn body(&mut self, open: &Word, depth: usize) -> Result<Vec<Directive>, CorefileError> {
        if depth > MAX_DEPTH {
            return Err(open.error(format!("more than {MAX_DEPTH} nested blocks")));
        }
        let mut lines = Vec::new();
        loop {
            let Some(token) = self.words.next()? else { return Err(open.error("this brace is never closed")) };
            if token.is("}") {
                return Ok(lines);
            }
            if token.is("{") {
                return Err(token.word.error("expected a directive before this brace"));
            }
            let mut line = Directive { name: token.word, args: Vec::new(), body: Vec::new() };
            while let Some(token) = self.words.next_of_line()? {
                if token.is("{") {
                    line.body = self.body(&token.word, depth + 1)?;
                    break;
                }
                line.args.push(token.word);
            }
            lines.push(line);
        }
    }
}

fn unexpected_end(at: Position) -> CorefileError {
    CorefileError { at, message: "unexpected end of the file".to_owned() }
}

/// A duration as Go's `time.ParseDuration` spells it, without signs; a bare number counts seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !in_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(in_number).unwrap_or(tail.len()));
        let seconds = match unit {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}
