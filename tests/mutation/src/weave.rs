//! Puts many mutants into one source, each behind a switch of its own.
//!
//! Whatever a mutant changes becomes `if on(ID) { changed } else { as it was }`. A changed branch holds the source as it was elsewhere, since
//! only one mutant is ever switched on; so nested ones cost no more than their sum.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use anyhow::{Context, Result};
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::mutant::{Genre, Mutant};

/// A file with its mutants in it.
pub struct Woven {
    /// The source.
    pub text: String,
    /// Where in it each mutant is, for complaints of the compiler.
    pub places: Vec<(Range<usize>, usize)>,
    /// Mutants that no place was found for.
    pub left_out: Vec<usize>,
}

/// How a mutant is switched on, in the woven program.
fn on(id: usize) -> String {
    format!("crate::mutation::on({id})")
}

/// What syn says of where things are, for things that mutants name by their first byte.
#[derive(Default)]
struct Places {
    /// The operation that an operator stands in.
    operations: HashMap<usize, Range<usize>>,
    /// The end of an arm's pattern.
    patterns: HashMap<usize, usize>,
    /// The expression that a field stands in.
    structs: HashMap<usize, Range<usize>>,
}

fn bytes(span: Span) -> Range<usize> {
    span.byte_range()
}

impl<'ast> Visit<'ast> for Places {
    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        // Of a chain with a `let` only the whole is an expression, and nothing else than `&&` may stand in it.
        if !is_chain(&node.left) && !is_chain(&node.right) {
            self.operations
                .insert(bytes(node.op.span()).start, bytes(node.span()));
        }
        visit::visit_expr_binary(self, node);
    }

    fn visit_expr_unary(&mut self, node: &'ast syn::ExprUnary) {
        self.operations
            .insert(bytes(node.op.span()).start, bytes(node.span()));
        visit::visit_expr_unary(self, node);
    }

    fn visit_arm(&mut self, node: &'ast syn::Arm) {
        self.patterns
            .insert(bytes(node.span()).start, bytes(node.pat.span()).end);
        visit::visit_arm(self, node);
    }

    fn visit_expr_struct(&mut self, node: &'ast syn::ExprStruct) {
        for field in &node.fields {
            self.structs
                .insert(bytes(field.span()).start, bytes(node.span()));
        }
        visit::visit_expr_struct(self, node);
    }
}

/// Whether a `let` is a part of this condition.
fn is_chain(condition: &syn::Expr) -> bool {
    match condition {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(node) => is_chain(&node.left) || is_chain(&node.right),
        _ => false,
    }
}

/// A piece of text for one place, and whose it is.
struct Piece {
    text: String,
    whose: Option<usize>,
}

/// Weaves mutants of one file into its text.
///
/// # Errors
/// When the text is no Rust.
pub fn weave(text: &str, mutants: &[&Mutant]) -> Result<Woven> {
    let file = syn::parse_file(text).context("a source that is no Rust")?;
    let mut places = Places::default();
    places.visit_file(&file);

    // By what they stand around: expressions with what they may be instead, and places with what is put there.
    let mut around: BTreeMap<(usize, usize), Vec<Piece>> = BTreeMap::new();
    let mut at: BTreeMap<usize, Vec<Piece>> = BTreeMap::new();
    let mut left_out = Vec::new();
    for mutant in mutants {
        let instead = |whole: &Range<usize>| {
            let (start, end) = (
                mutant.span.start - whole.start,
                mutant.span.end - whole.start,
            );
            let old = &text[whole.clone()];
            format!("{} {} {}", &old[..start], mutant.replacement, &old[end..])
        };
        let whole = match mutant.genre {
            // A type without a name is that of one expression.
            Genre::FnValue if mutant.returns.contains("impl ") => {
                left_out.push(mutant.id);
                continue;
            }
            Genre::FnValue => {
                let text = format!("if {} {{ return {}; }} ", on(mutant.id), mutant.replacement);
                at.entry(mutant.span.start).or_default().push(Piece {
                    text,
                    whose: Some(mutant.id),
                });
                continue;
            }
            Genre::MatchArm => {
                match places.patterns.get(&mutant.span.start) {
                    Some(end) => {
                        let text = format!(" if !{}", on(mutant.id));
                        at.entry(*end).or_default().push(Piece {
                            text,
                            whose: Some(mutant.id),
                        });
                    }
                    None => left_out.push(mutant.id),
                }
                continue;
            }
            Genre::MatchArmGuard => Some(mutant.span.clone()),
            Genre::BinaryOperator | Genre::UnaryOperator => {
                places.operations.get(&mutant.span.start).cloned()
            }
            Genre::StructField => places.structs.get(&mutant.span.start).cloned(),
        };
        match whole {
            Some(whole) => {
                let text = format!("if {} {{ {} }} else ", on(mutant.id), instead(&whole));
                around
                    .entry((whole.start, whole.end))
                    .or_default()
                    .push(Piece {
                        text,
                        whose: Some(mutant.id),
                    });
            }
            None => left_out.push(mutant.id),
        }
    }

    // What stands around something begins outermost first and ends innermost first; what ends comes before what begins.
    let mut pieces: Vec<(usize, u8, usize, Vec<Piece>)> = Vec::new();
    for ((start, end), mut begin) in around {
        begin.insert(
            0,
            Piece {
                text: "(".to_owned(),
                whose: None,
            },
        );
        begin.push(Piece {
            text: "{ ".to_owned(),
            whose: None,
        });
        pieces.push((start, 2, usize::MAX - (end - start), begin));
        pieces.push((
            end,
            0,
            end - start,
            vec![Piece {
                text: " })".to_owned(),
                whose: None,
            }],
        ));
    }
    for (place, put) in at {
        pieces.push((place, 1, 0, put));
    }
    pieces.sort_by_key(|(place, turn, width, _)| (*place, *turn, *width));

    let mut woven = Woven {
        text: String::with_capacity(text.len() * 2),
        places: Vec::new(),
        left_out,
    };
    let mut copied = 0;
    for (place, _, _, put) in pieces {
        woven.text.push_str(&text[copied..place]);
        copied = place;
        for piece in put {
            let start = woven.text.len();
            woven.text.push_str(&piece.text);
            if let Some(id) = piece.whose {
                woven.places.push((start..woven.text.len(), id));
            }
        }
    }
    woven.text.push_str(&text[copied..]);
    Ok(woven)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weaves `(genre, what it replaces, by what)` into a source, each the first of its kind there.
    fn woven(text: &str, changes: &[(Genre, &str, &str)]) -> Woven {
        let mutants: Vec<Mutant> = changes
            .iter()
            .enumerate()
            .map(|(id, (genre, old, new))| {
                let start = text.find(old).expect("what is replaced is there");
                Mutant {
                    id,
                    name: String::new(),
                    file: String::new(),
                    genre: *genre,
                    span: start..start + old.len(),
                    replacement: (*new).to_owned(),
                    returns: String::new(),
                }
            })
            .collect();
        let woven = weave(text, &mutants.iter().collect::<Vec<_>>()).expect("the source is Rust");
        syn::parse_file(&woven.text).expect("what was woven is Rust");
        woven
    }

    #[test]
    fn each_change_stands_behind_its_switch_and_the_rest_as_it_was() {
        let cases = [
            (
                "fn f() -> u8 { 7 }",
                (Genre::FnValue, "7", "0"),
                "fn f() -> u8 { if crate::mutation::on(0) { return 0; } 7 }",
            ),
            (
                "fn f(a: u8) -> bool { a < 3 }",
                (Genre::BinaryOperator, "<", "=="),
                "fn f(a: u8) -> bool { (if crate::mutation::on(0) { a  ==  3 } else { a < 3 }) }",
            ),
            (
                "fn f(a: bool) -> bool { !a }",
                (Genre::UnaryOperator, "!", ""),
                "fn f(a: bool) -> bool { (if crate::mutation::on(0) {   a } else { !a }) }",
            ),
            (
                "fn f(a: u8) -> u8 { match a { 1 => 2, _ => 3 } }",
                (Genre::MatchArm, "1 => 2,", ""),
                "fn f(a: u8) -> u8 { match a { 1 if !crate::mutation::on(0) => 2, _ => 3 } }",
            ),
            (
                "fn f(a: u8) -> u8 { match a { n if ok(n) => 2, _ => 3 } }",
                (Genre::MatchArmGuard, "ok(n)", "true"),
                "fn f(a: u8) -> u8 { match a { n if (if crate::mutation::on(0) {  true  } else { ok(n) }) => 2, _ => 3 } }",
            ),
            (
                "fn f(a: S) -> S { S { x: 1, ..a } }",
                (Genre::StructField, "x: 1,", ""),
                "fn f(a: S) -> S { (if crate::mutation::on(0) { S {    ..a } } else { S { x: 1, ..a } }) }",
            ),
        ];
        for (text, change, expected) in cases {
            assert_eq!(woven(text, &[change]).text, expected);
        }
    }

    #[test]
    fn changes_within_one_another_and_at_one_place_are_all_there() {
        let text = "fn f(a: u8) -> bool { !g(a + 1) && a < 3 }";
        let woven = woven(
            text,
            &[
                (Genre::FnValue, "!g(a + 1) && a < 3", "true"),
                (Genre::BinaryOperator, "&&", "||"),
                (Genre::UnaryOperator, "!", ""),
                (Genre::BinaryOperator, "+", "-"),
                (Genre::BinaryOperator, "<", ">"),
            ],
        );
        let ids: BTreeMap<usize, &str> = woven
            .places
            .iter()
            .map(|(place, id)| (*id, &woven.text[place.clone()]))
            .collect();
        assert_eq!(ids.len(), 5);
        for (id, text) in ids {
            assert!(text.contains(&format!("on({id})")), "{text}");
        }
        // A changed branch holds no other change.
        assert!(
            woven.text.contains("on(1) { !g(a + 1)  ||  a < 3 } else"),
            "{}",
            woven.text
        );
    }

    #[test]
    fn what_no_place_is_found_for_is_said() {
        let text = "fn f() -> u8 { g!(1 + 2) }";
        assert_eq!(
            woven(text, &[(Genre::BinaryOperator, "+", "-")]).left_out,
            [0]
        );
    }
}
