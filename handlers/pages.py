"""The routes of the HTML pages: `lists` shows lists of builds, `buildpage` one build.

Every page is complete without JavaScript; a page of an active build then reloads itself. With JavaScript, the log
grows as the build writes it, and the script fetches the other facts again from the same page.

Text from a repository or its log is never markup. The templates escape it, and the Content-Security-Policy forbids
inline scripts and styles.
"""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response

from builds.repository import short_name
from eventing.terminal import plain
from handlers import buildpage, dryruns, forms, lists, nodes, problems, signin, times
from handlers.problems import Problem

routes = Blueprint("pages", __name__)
routes.add_url_rule("/", view_func=lists.index, provide_automatic_options=False)
routes.add_url_rule("/repository", view_func=lists.repository)
routes.add_url_rule("/builds/<name>", view_func=buildpage.build)
routes.add_url_rule("/builds/<name>/log", view_func=buildpage.log)
routes.add_url_rule("/builds/<name>/cancel", view_func=buildpage.cancel_build, methods=["POST"])
routes.add_url_rule("/builds/<name>/rebuild", view_func=buildpage.rebuild_build, methods=["POST"])
routes.add_url_rule("/builds/<name>/resend", view_func=buildpage.resend_event, methods=["POST"])
routes.add_url_rule("/new", view_func=forms.new_build)
routes.add_url_rule("/new", view_func=forms.request_build, methods=["POST"])
routes.add_url_rule("/nodes", view_func=nodes.nodes)
routes.add_url_rule("/triggers", view_func=dryruns.triggers)
routes.add_url_rule("/triggers", view_func=dryruns.try_event, methods=["POST"])
for text_filter in (*times.FILTERS, plain):
    routes.add_app_template_filter(text_filter)

routes.before_request(signin.take_token)


@routes.errorhandler(Problem)
def show_problem(problem: Problem) -> Response:
    """Return the sign-in page to a browser without valid credentials; otherwise the problem itself."""
    if problem.status != HTTPStatus.UNAUTHORIZED or not problems.for_a_person():
        return problems.answer(problem)
    return signin.ask(problem)


# Filters and tests for templates


@routes.app_template_filter()
def branch(ref: str | None) -> str:
    """Return the short name of a ref."""
    return short_name(ref or "")


@routes.app_template_test()
def web_address(url: str) -> bool:
    return url.startswith(("https://", "http://"))
