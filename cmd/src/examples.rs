//! The examples of the whole command line, as they stand in its help.
//!
//! Printed by the hidden `garden examples`, by which a test finds and runs every one of them; a
//! test here fails for a command without one. Examples follow a line that ends in `Example:` or
//! `Examples:`, each indented by two spaces.

use clap::Command;

/// An example and the command in whose help it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    /// The command's words, without the program's own name.
    pub(crate) command: String,
    /// A line for a shell.
    pub(crate) line: String,
}

/// All examples of a command and those below it.
pub(crate) fn all(command: &Command) -> Vec<Example> {
    let mut found = Vec::new();
    visit(command, "", &mut |path, command| {
        for line in of(command) {
            found.push(Example {
                command: path.to_owned(),
                line,
            });
        }
    });
    found
}

fn visit(command: &Command, path: &str, see: &mut impl FnMut(&str, &Command)) {
    see(path, command);
    for below in command.get_subcommands() {
        let path = format!("{path} {}", below.get_name());
        visit(below, path.trim(), see);
    }
}

fn of(command: &Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let mut lines = help
        .lines()
        .skip_while(|line| !line.ends_with("Example:") && !line.ends_with("Examples:"))
        .skip(1);
    let mut examples: Vec<String> = Vec::new();
    let mut goes_on = false;
    while let Some(line) = lines.next().filter(|line| line.starts_with("  ")) {
        let text = line.trim();
        let part = text.strip_suffix('\\').unwrap_or(text).trim_end();
        match examples.last_mut().filter(|_| goes_on) {
            Some(last) => {
                last.push(' ');
                last.push_str(part);
            }
            None => examples.push(part.to_owned()),
        }
        goes_on = text.ends_with('\\');
    }
    examples
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::Cli;

    /// Commands with a parser of their own.
    const OTHERS: [&str; 1] = ["rootfs"];

    #[test]
    fn every_command_has_an_example() {
        let mut without = Vec::new();
        visit(&Cli::command(), "", &mut |path, command| {
            let group = command.has_subcommands();
            if !group && of(command).is_empty() && !OTHERS.contains(&path) {
                without.push(path.to_owned());
            }
        });
        assert!(without.is_empty(), "no example in the help of: {without:?}");
    }

    /// The words of the one command of ours in a line for a shell.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" | ").find(|part| part.starts_with("garden"));
        let line = line.unwrap_or_default();
        let line = line.split(" > ").next().unwrap_or_default();
        let mut words = vec![String::new()];
        let (mut quoted, mut nested) = (false, 0);
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                '(' => nested += 1,
                ')' => nested -= 1,
                ' ' if !quoted && nested == 0 => words.push(String::new()),
                // What another command says: some word.
                '$' => {}
                c if nested == 0 => words.last_mut().into_iter().for_each(|word| word.push(c)),
                _ => {}
            }
        }
        for word in &mut words {
            if word.is_empty() {
                word.push('x');
            }
        }
        words
    }

    #[test]
    fn every_example_is_a_command_line() {
        let examples = all(&Cli::command());
        assert!(examples.len() > 40, "{}", examples.len());
        for example in examples {
            let words = words(&example.line);
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{}: {error}", example.line);
            }
            let command = example.command.split(' ').next().unwrap_or_default();
            assert!(words.iter().any(|word| word == command), "{example:?}");
        }
    }

    #[test]
    fn an_example_may_go_on_in_the_next_line() {
        let command =
            Command::new("x").after_help("Words.\n\nExamples:\n  a b \\\n    c\n  d\n\nMore.");
        assert_eq!(of(&command), ["a b c", "d"]);
    }
}
