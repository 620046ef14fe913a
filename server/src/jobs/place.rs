//! Where jobs are kept: a file of SQLite for one machine, a PostgreSQL for any number of servers, or nowhere. Without a
//! word from the user it is a file where the system keeps a service's state.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A place for jobs. A password in it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// There are no jobs.
    Off,
    /// The file [`FILE`] in the folder for state: `$STATE_DIRECTORY` as systemd gives it, else
    /// `$XDG_STATE_HOME/windowpane`, else `~/.local/state/windowpane`.
    Home,
    /// This file, which is made where it is missing; servers of one machine may share it.
    Sqlite(PathBuf),
    /// This database, by its URL.
    Postgres(String),
}

/// The file in the folder for state.
pub const FILE: &str = "jobs.sqlite";

/// A text is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected `auto`, `off`, `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`")]
pub struct PlaceError;

// === impl Place ===

impl Place {
    /// The place as it is on this machine; none where there is none.
    pub fn resolve(&self) -> Option<Self> {
        match self {
            Self::Off => None,
            Self::Home => {
                let folder =
                    home(|name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute()));
                folder.map(|folder| Self::Sqlite(folder.join(FILE)))
            }
            place => Some(place.clone()),
        }
    }
}

/// The folder for state.
fn home(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // Of several folders the first is the service's own.
    let first = |path: PathBuf| path.to_str()?.split(':').next().map(PathBuf::from);
    let given = variable("STATE_DIRECTORY").and_then(first);
    let ours = || variable("XDG_STATE_HOME").map(|state| state.join("windowpane"));
    let usual = || variable("HOME").map(|home| home.join(".local/state/windowpane"));
    given.or_else(ours).or_else(usual)
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text {
            "off" => return Ok(Self::Off),
            "auto" => return Ok(Self::Home),
            _ if text.starts_with("postgres://") || text.starts_with("postgresql://") => {
                return Ok(Self::Postgres(text.to_owned()));
            }
            _ => {}
        }
        let path = text.strip_prefix("sqlite:").ok_or(PlaceError)?;
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() { Err(PlaceError) } else { Ok(Self::Sqlite(path.into())) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Home => f.write_str("auto"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", ""));
                // Of the parameters one may be a password.
                let rest = rest.split('?').next().unwrap_or("");
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                write!(f, "{scheme}://{host}")
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_shown_without_their_passwords() {
        for (text, shown) in [
            ("off", "off"),
            ("auto", "auto"),
            ("sqlite:/srv/jobs.sqlite", "sqlite:/srv/jobs.sqlite"),
            ("sqlite:///srv/jobs.sqlite", "sqlite:/srv/jobs.sqlite"),
            ("sqlite:here.sqlite", "sqlite:here.sqlite"),
            ("postgres://me:s@cret@db:5432/jobs?sslmode=require&password=x", "postgres://db:5432/jobs"),
            ("postgresql://db/jobs", "postgresql://db/jobs"),
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!((place.to_string().as_str(), format!("{place:?}").as_str()), (shown, shown));
        }
        for text in ["", "sqlite:", "jobs.sqlite", "mysql://db/jobs"] {
            assert_eq!(text.parse::<Place>(), Err(PlaceError), "{text}");
        }
    }

    #[test]
    fn home_is_where_the_system_says() {
        let of = |known: &[(&str, &str)]| {
            let known = known.to_vec();
            home(move |name| known.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value)))
        };
        let all = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("XDG_STATE_HOME", "/s"), ("HOME", "/h")];
        assert_eq!(of(&all), Some("/var/lib/a".into()));
        assert_eq!(of(&all[1..]), Some("/s/windowpane".into()));
        assert_eq!(of(&all[2..]), Some("/h/.local/state/windowpane".into()));
        assert_eq!(of(&[]), None);
    }
}
