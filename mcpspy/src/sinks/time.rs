//! Boot-clock times as people and programs read them.

use jiff::tz::TimeZone;

use crate::model::Timestamp;

const NS: u64 = 1_000_000_000;

/// Writes times of one run. Remembers the text of the last second: most events share it with the one
/// before.
pub(super) struct WallClock {
    offset_ns: i64,
    zone: Option<TimeZone>,
    second: Option<u64>,
    text: [u8; 19],
}

impl WallClock {
    /// `zone` is for [`WallClock::push_time_of_day`] alone; `None` means UTC.
    pub(super) fn new(offset_ns: i64, zone: Option<TimeZone>) -> Self {
        Self { offset_ns, zone, second: None, text: [b'0'; 19] }
    }

    /// Seconds since 1970 and nanoseconds. A time before that, which no clock shows, becomes 0.
    fn wall(&self, at: Timestamp) -> (u64, u32) {
        let ns = at.0.saturating_add_signed(self.offset_ns);
        (ns / NS, (ns % NS) as u32)
    }

    /// `2026-03-01T12:34:56.789012345Z`
    pub(super) fn push_rfc3339(&mut self, out: &mut Vec<u8>, at: Timestamp) {
        let (second, ns) = self.wall(at);
        self.render(second, None);
        out.extend_from_slice(&self.text);
        out.push(b'.');
        push_digits(out, ns, 9);
        out.push(b'Z');
    }

    /// `12:34:56.789`, with `Z` in UTC.
    pub(super) fn push_time_of_day(&mut self, out: &mut String, at: Timestamp) {
        let (second, ns) = self.wall(at);
        let zone = self.zone.clone();
        self.render(second, zone.as_ref());
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.text[11..]);
        bytes[8] = b'.';
        write_digits(&mut bytes[9..], ns / 1_000_000);
        out.push_str(str::from_utf8(&bytes).unwrap_or_default());
        if zone.is_none() {
            out.push('Z');
        }
    }

    fn render(&mut self, second: u64, zone: Option<&TimeZone>) {
        if self.second.replace(second) == Some(second) {
            return;
        }
        let offset = zone
            .zip(jiff::Timestamp::from_second(second.cast_signed()).ok())
            .map_or(0, |(zone, time)| i64::from(zone.to_offset(time).seconds()));
        let local = second.saturating_add_signed(offset);
        let (year, month, day) = civil(local / 86_400);
        let of_day = (local % 86_400) as u32;
        let text = &mut self.text;
        text.copy_from_slice(b"0000-00-00T00:00:00");
        write_digits(&mut text[0..4], year);
        write_digits(&mut text[5..7], month);
        write_digits(&mut text[8..10], day);
        write_digits(&mut text[11..13], of_day / 3600);
        write_digits(&mut text[14..16], of_day / 60 % 60);
        write_digits(&mut text[17..19], of_day % 60);
    }
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u32, u32, u32) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

fn write_digits(out: &mut [u8], mut value: u32) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn push_digits(out: &mut Vec<u8>, value: u32, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    write_digits(&mut out[start..], value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rfc3339(seconds: u64, ns: u64) -> String {
        let mut out = Vec::new();
        WallClock::new(0, None).push_rfc3339(&mut out, Timestamp(seconds * 1_000_000_000 + ns));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rfc3339_has_nine_digits_and_is_utc() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_827_696, 7), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339(1_772_323_199, 999_999_999), "2026-02-28T23:59:59.999999999Z");
        assert_eq!(rfc3339(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn days_agree_with_a_calendar_library() {
        for day in (0..60_000_u64).step_by(13) {
            let jiff = jiff::Timestamp::from_second((day * 86_400).cast_signed()).unwrap();
            assert_eq!(rfc3339(day * 86_400, 0)[..19], jiff.to_string()[..19]);
        }
    }

    #[test]
    fn the_offset_turns_boot_time_into_wall_time() {
        let mut clock = WallClock::new(1_772_323_200_000_000_000, None);
        let mut out = Vec::new();
        clock.push_rfc3339(&mut out, Timestamp(1_500_000_000));
        assert_eq!(out, b"2026-03-01T00:00:01.500000000Z");
        let mut early = WallClock::new(i64::MIN, None);
        out.clear();
        early.push_rfc3339(&mut out, Timestamp(0));
        assert_eq!(out, b"1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn the_time_of_day_is_local_or_says_z() {
        let time = |zone| {
            let mut out = String::new();
            WallClock::new(0, zone)
                .push_time_of_day(&mut out, Timestamp(1_772_323_200_789_000_000));
            out
        };
        assert_eq!(time(None), "00:00:00.789Z");
        let east = jiff::tz::offset(5).to_time_zone();
        assert_eq!(time(Some(east)), "05:00:00.789");
    }
}
