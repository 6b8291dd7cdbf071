"""The tests mirror ai_agent_service/: what is tested of ai_agent_service/agents/loop.py stands in
tests/agents/test_loop.py."""
