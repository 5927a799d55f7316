//! The operator's SQL before it is wrapped: one statement, without what would swallow or close the wrapper.
//!
//! The scanner knows just enough of each dialect to tell text and comments from the rest. It refuses early and in words what
//! the server would refuse anyway (prepared statements take one statement); it never decides what a statement may do.

use super::SourceError;

/// Whose rules for quotes and comments apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lexis {
    /// `E'…'` with backslashes, `$tag$…$tag$`, nested `/* */`.
    Postgres,
    /// Backslashes in text, backticks, `#` comments.
    MySql,
    /// Backticks and `[names]`.
    Sqlite,
}

/// One statement, ready to stand inside parentheses (followed by a line break).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// Which query it is, for messages.
    pub(super) statement: &'static str,
    text: String,
}

impl Query {
    /// Removes what follows the statement: semicolons, white space, comments.
    ///
    /// # Errors
    /// The text is empty, holds several statements, or its parentheses, quotes or comments do not close.
    pub(super) fn new(
        statement: &'static str,
        text: &str,
        lexis: Lexis,
    ) -> Result<Self, SourceError> {
        let refuse = |problem: &str| SourceError::Shape {
            statement,
            problem: problem.to_owned(),
            help: "one SELECT, which may begin with WITH, hold comments and end in a semicolon"
                .to_owned(),
        };
        let end = Scanner {
            bytes: text.as_bytes(),
            at: 0,
            lexis,
        }
        .end_of_statement()
        .map_err(refuse)?;
        Ok(Self {
            statement,
            text: text[..end].to_owned(),
        })
    }

    /// The statement, to be followed by a line break: it may end in a comment of one line no more, but stays safe if it does.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    lexis: Lexis,
}

impl Scanner<'_> {
    /// Where the one statement ends.
    fn end_of_statement(mut self) -> Result<usize, &'static str> {
        let mut end = 0;
        let mut depth = 0_u32;
        let mut is_closed = false;
        while let Some(byte) = self.peek(0) {
            if self.skip_blank()? {
                continue;
            }
            if byte == b';' && depth == 0 {
                is_closed |= end > 0;
                self.at += 1;
                continue;
            }
            if is_closed {
                return Err("holds several statements");
            }
            match byte {
                b'(' => depth += 1,
                b')' => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or("closes a parenthesis that it did not open")?;
                }
                b';' => return Err("has a semicolon inside parentheses"),
                0 => return Err("holds a NUL character"),
                _ => {}
            }
            self.skip_token()?;
            end = self.at;
        }
        if end == 0 {
            return Err("is empty");
        }
        if depth > 0 {
            return Err("opens a parenthesis that it does not close");
        }
        Ok(end)
    }

    fn peek(&self, offset: usize) -> Option<u8> {
        self.bytes.get(self.at + offset).copied()
    }

    fn starts_with(&self, text: &[u8]) -> bool {
        self.bytes[self.at..].starts_with(text)
    }

    /// Skips white space or a comment, if one is next.
    fn skip_blank(&mut self) -> Result<bool, &'static str> {
        let is_line_comment = match self.lexis {
            Lexis::MySql => {
                self.starts_with(b"#")
                    || (self.starts_with(b"--") && self.peek(2).is_none_or(|next| next <= b' '))
            }
            Lexis::Postgres | Lexis::Sqlite => self.starts_with(b"--"),
        };
        if is_line_comment {
            while self.peek(0).is_some_and(|byte| byte != b'\n') {
                self.at += 1;
            }
            return Ok(true);
        }
        // MySQL runs what stands in /*! … */: to the scanner that is part of the statement.
        let is_executable =
            self.lexis == Lexis::MySql && (self.starts_with(b"/*!") || self.starts_with(b"/*M!"));
        if is_executable {
            return Err("holds an executable comment (/*! … */)");
        }
        if self.starts_with(b"/*") {
            self.skip_block_comment()?;
            return Ok(true);
        }
        let is_space = self.peek(0).is_some_and(|byte| byte.is_ascii_whitespace());
        self.at += usize::from(is_space);
        Ok(is_space)
    }

    fn skip_block_comment(&mut self) -> Result<(), &'static str> {
        let mut depth = 0_u32;
        while self.at < self.bytes.len() {
            if self.starts_with(b"/*") && (depth == 0 || self.lexis == Lexis::Postgres) {
                depth += 1;
                self.at += 2;
            } else if self.starts_with(b"*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                self.at += 1;
            }
        }
        Err("has a comment that does not end")
    }

    /// Skips one quoted text, one word, or one other character.
    fn skip_token(&mut self) -> Result<(), &'static str> {
        let Some(byte) = self.peek(0) else {
            return Ok(());
        };
        match byte {
            b'\'' => self.skip_quoted(b'\'', self.lexis == Lexis::MySql),
            b'"' => self.skip_quoted(b'"', self.lexis == Lexis::MySql),
            b'`' if self.lexis != Lexis::Postgres => self.skip_quoted(b'`', false),
            b'[' if self.lexis == Lexis::Sqlite => self.skip_quoted(b']', false),
            b'$' if self.lexis == Lexis::Postgres => self.skip_dollar_quoted(),
            _ if is_word(byte) => self.skip_word(byte),
            _ => {
                self.at += 1;
                Ok(())
            }
        }
    }

    /// Skips text up to `quote`, which stands for itself when doubled.
    fn skip_quoted(&mut self, quote: u8, has_escapes: bool) -> Result<(), &'static str> {
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            if byte == b'\\' && has_escapes {
                self.at += 2;
            } else if byte != quote {
                self.at += 1;
            } else if self.peek(1) == Some(quote) {
                self.at += 2;
            } else {
                self.at += 1;
                return Ok(());
            }
        }
        Err("has a quote that does not close")
    }

    fn skip_word(&mut self, first: u8) -> Result<(), &'static str> {
        if self.lexis == Lexis::Postgres
            && first.eq_ignore_ascii_case(&b'e')
            && self.peek(1) == Some(b'\'')
        {
            self.at += 1;
            return self.skip_quoted(b'\'', true);
        }
        // A dollar sign inside a word opens no quoted text.
        while self
            .peek(0)
            .is_some_and(|byte| is_word(byte) || byte == b'$')
        {
            self.at += 1;
        }
        Ok(())
    }

    fn skip_dollar_quoted(&mut self) -> Result<(), &'static str> {
        let tag_length = self.bytes[self.at + 1..]
            .iter()
            .take_while(|byte| is_word(**byte))
            .count();
        let is_quote = self.peek(1 + tag_length) == Some(b'$')
            && !self.peek(1).is_some_and(|byte| byte.is_ascii_digit());
        if !is_quote {
            self.at += 1;
            return Ok(());
        }
        let tag = &self.bytes[self.at..self.at + tag_length + 2];
        let body = self.at + tag.len();
        let length = self.bytes[body..]
            .windows(tag.len())
            .position(|window| window == tag)
            .ok_or("has a quote that does not close")?;
        self.at = body + length + tag.len();
        Ok(())
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Lexis; 3] = [Lexis::Postgres, Lexis::MySql, Lexis::Sqlite];

    fn text(query: &str, lexis: Lexis) -> Result<String, String> {
        Query::new("source query", query, lexis)
            .map(|query| query.text().to_owned())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_follows_the_statement_is_removed() {
        let cases = [
            ("SELECT 1", "SELECT 1"),
            (" SELECT 1 ;; \n", " SELECT 1"),
            ("SELECT 1 -- the end", "SELECT 1"),
            ("SELECT 1; -- the end\n/* ; */ ;", "SELECT 1"),
            (
                "-- first\nWITH a AS (SELECT 1) SELECT * FROM a;",
                "-- first\nWITH a AS (SELECT 1) SELECT * FROM a",
            ),
            (
                "SELECT ';', \";\" /* ; */ FROM t",
                "SELECT ';', \";\" /* ; */ FROM t",
            ),
            ("SELECT 'it''s; ' x", "SELECT 'it''s; ' x"),
            ("SELECT 'é;'", "SELECT 'é;'"),
        ];
        for lexis in ALL {
            for (query, expected) in cases {
                assert_eq!(text(query, lexis).as_deref(), Ok(expected), "{lexis:?}");
            }
        }
    }

    #[test]
    fn each_dialect_keeps_its_own_quotes_and_comments() {
        let cases = [
            (Lexis::Postgres, "SELECT $$;)$$, $a$ ; $$ $a$"),
            (Lexis::Postgres, r"SELECT E'\';', 'x\'"),
            (Lexis::Postgres, "SELECT /* /* ; */ ) */ a$b$c"),
            (Lexis::Postgres, "SELECT a[1], m->>'k', x #> '{a}'"),
            (Lexis::MySql, r"SELECT 'a\';', `;`"),
            (Lexis::MySql, "SELECT 5--1"),
            (Lexis::Sqlite, "SELECT [;], `)` /* /* */"),
        ];
        for (lexis, query) in cases {
            let expected = query.trim_end_matches("/* /* */").trim_end();
            assert_eq!(text(query, lexis).as_deref(), Ok(expected), "{lexis:?}");
        }
        assert_eq!(
            text("SELECT 1 # the end ;", Lexis::MySql).as_deref(),
            Ok("SELECT 1")
        );
    }

    #[test]
    fn what_is_not_one_statement_is_refused() {
        let cases = [
            ("", "is empty"),
            (" ; -- nothing", "is empty"),
            ("SELECT 1; SELECT 2", "holds several statements"),
            ("SELECT 1; DELETE FROM t;", "holds several statements"),
            (
                "SELECT 1) AS x; DELETE FROM t; SELECT * FROM (SELECT 1",
                "closes a parenthesis that it did not open",
            ),
            ("SELECT (1", "opens a parenthesis that it does not close"),
            ("SELECT 'a", "has a quote that does not close"),
            ("SELECT 1 /* a", "has a comment that does not end"),
            ("SELECT (1; 2)", "has a semicolon inside parentheses"),
        ];
        for lexis in ALL {
            for (query, problem) in cases {
                assert_eq!(
                    text(query, lexis),
                    Err(format!("the source query {problem}")),
                    "{lexis:?} {query}"
                );
            }
        }
        assert!(text("SELECT /*! SLEEP(9) */ 1", Lexis::MySql).is_err());
    }
}
