//! A statement under construction: text with parameters, in the placeholders of its dialect.

use std::fmt::Write as _;

/// SQL text and the values of its parameters, in order.
#[derive(Clone)]
pub(super) struct Statement {
    text: String,
    binds: Vec<Bind>,
    placeholders: Placeholders,
}

/// The value of one parameter. Ids and cursors only, but a person's data all the same: it has no `Debug`.
#[derive(Clone)]
pub(super) enum Bind {
    Text(String),
    Integer(i64),
    Bytes(Vec<u8>),
}

/// How a dialect writes parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placeholders {
    /// `$1`, `$2`.
    Numbered,
    /// `?`, `?`.
    Positional,
}

/// A parameter with the cast that gives it its column's type.
#[derive(Clone)]
pub(super) struct Param {
    pub(super) before: &'static str,
    pub(super) bind: Bind,
    pub(super) after: String,
}

impl Param {
    /// A parameter without a cast.
    pub(super) fn plain(bind: Bind) -> Self {
        Self::cast("", bind, "")
    }

    /// `before $n after`.
    pub(super) fn cast(before: &'static str, bind: Bind, after: impl Into<String>) -> Self {
        Self {
            before,
            bind,
            after: after.into(),
        }
    }
}

impl Statement {
    pub(super) fn new(placeholders: Placeholders) -> Self {
        Self {
            text: String::new(),
            binds: Vec::new(),
            placeholders,
        }
    }

    /// Appends SQL text.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Appends a parameter with its cast.
    pub(super) fn param(&mut self, param: &Param) -> &mut Self {
        let Param {
            before,
            bind,
            after,
        } = param;
        self.binds.push(bind.clone());
        self.text.push_str(before);
        match self.placeholders {
            Placeholders::Numbered => {
                write!(self.text, "${}", self.binds.len()).expect("a String takes all text");
            }
            Placeholders::Positional => self.text.push('?'),
        }
        self.text.push_str(after);
        self
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn binds(&self) -> &[Bind] {
        &self.binds
    }

    /// Appends `operands[0] > params[0] …` for the order of both columns together.
    pub(super) fn after(
        &mut self,
        columns: [&str; 2],
        params: [&Param; 2],
        comparison: Comparison,
    ) -> &mut Self {
        let ([first, second], [low, high]) = (columns, params);
        match comparison {
            Comparison::RowValues => self
                .push(&format!("({first}, {second}) > ("))
                .param(low)
                .push(", ")
                .param(high)
                .push(")"),
            // The form that the range optimiser of MySQL and MariaDB understands.
            Comparison::Expanded => self
                .push(&format!("({first} > "))
                .param(low)
                .push(&format!(" OR ({first} = "))
                .param(low)
                .push(&format!(" AND {second} > "))
                .param(high)
                .push("))"),
        }
    }
}

/// An integer less some units, not below `least`; the text itself when it is no integer.
pub(super) fn lowered(bind: &Bind, units: i64, least: i128) -> Bind {
    match bind {
        Bind::Integer(integer) => Bind::Integer(integer.saturating_sub(units)),
        Bind::Text(text) => match text.parse::<i128>() {
            Ok(integer) => Bind::Text(
                (integer.saturating_sub(i128::from(units)))
                    .max(least)
                    .to_string(),
            ),
            Err(_) => bind.clone(),
        },
        Bind::Bytes(_) => bind.clone(),
    }
}

/// How a dialect best compares two columns at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// `(a, b) > (x, y)`.
    RowValues,
    /// `a > x OR (a = x AND b > y)`.
    Expanded,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_where_the_dialect_numbers_them() {
        let low = Param::cast("", Bind::Text("a".into()), "::text");
        let high = Param::plain(Bind::Integer(1));
        let text = |placeholders, comparison| {
            let mut statement = Statement::new(placeholders);
            statement.after(["a", "b"], [&low, &high], comparison);
            (statement.text().to_owned(), statement.binds().len())
        };
        assert_eq!(
            text(Placeholders::Numbered, Comparison::RowValues),
            ("(a, b) > ($1::text, $2)".to_owned(), 2)
        );
        assert_eq!(
            text(Placeholders::Positional, Comparison::Expanded),
            ("(a > ?::text OR (a = ?::text AND b > ?))".to_owned(), 3)
        );
    }
}
