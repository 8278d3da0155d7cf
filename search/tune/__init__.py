"""Ray Tune: the only room that speaks to it. Searcher, scheduler, callback, and the run of a study."""
